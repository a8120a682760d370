"""Damaged or hostile packed data sets, failing stores, and invalid arguments."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.data.check import check_lists
from ppxcls.data.dataset import ImageNetDataset
from ppxcls.data.groups import read_groups
from ppxcls.data.transforms import Compose, DecodeImage, RandCropImage
from ppxcls.packed import write
from ppxcls.packed.dataset import PackedDataset, pack_folder
from ppxcls.packed.format import RECORD, IndexRow, read_pack_manifest, unpacked
from ppxcls.packed.jpeg import HEIGHT_AT, SegmentedImage, rewrite_jpeg
from ppxcls.packed.jpeg_codes import SEGMENT
from ppxcls.packed.object_store import ObjectStore
from ppxcls.packed.web_files import WebFiles
from ppxcls.system.file_lock import locked
from tests.conftest import run_tool
from tests.packed.conftest import jpeg, photo

DECODE = [{"DecodeImage": {}}]


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    """A folder of 12 JPEGs and their list."""
    folder = tmp_path / "originals"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.jpg").write_bytes(jpeg(photo(160, 120, i)))
    (folder / "train.txt").write_text("".join(f"{i}.jpg {i % 3}\n" for i in range(12)))
    return folder


@pytest.fixture
def packed(originals: Path, tmp_path: Path) -> Path:
    ppxcls.pack(originals / "train.txt", None, output=tmp_path / "packed", samples_per_shard=2)
    return tmp_path / "packed"


def test_two_packings_in_one_folder(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, goes_on = threading.Event(), threading.Event()
    record = write._record

    def slow(*arguments: Any) -> Any:
        started.set()
        goes_on.wait(60)
        return record(*arguments)

    monkeypatch.setattr(write, "_record", slow)
    first = threading.Thread(
        target=ppxcls.pack, args=(originals / "train.txt", None), kwargs={"output": tmp_path / "out"}
    )
    first.start()
    started.wait(60)
    result = run_tool("pack", originals / "train.txt", "-o", tmp_path / "out")
    goes_on.set()
    first.join()
    assert result.returncode == 1
    assert result.stderr.strip() == f"error: {tmp_path / 'out'}: another process is packing there"
    assert not (tmp_path / "out/pack.lock").exists()
    ppxcls.verify_pack(tmp_path / "out", originals / "train.txt")


@pytest.mark.parametrize("name", ["list.txt", "class_names.txt", "groups.csv"])
def test_a_file_of_the_user_is_not_replaced(name: str, originals: Path, tmp_path: Path) -> None:
    (originals / "class_names.txt").write_text("0 a\n1 b\n2 c\n")
    (originals / "groups.csv").write_text("image,group\n5.jpg,1\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("precious 7\n")
    with pytest.raises(ppxcls.DataError, match="exists already and differs from"):
        ppxcls.pack(originals / "train.txt", None, output=tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "precious 7\n"


def test_groups_are_packed_and_unpacked(originals: Path, tmp_path: Path) -> None:
    (originals / "groups.csv").write_text("image,group\n5.jpg,1\n")
    ppxcls.pack(originals / "train.txt", None, output=tmp_path / "out")
    source = Path(PackedDataset(str(tmp_path / "out")).source)
    assert read_groups(source.with_name("groups.csv")) == {"5.jpg": "1"}
    ppxcls.unpack(tmp_path / "out", tmp_path / "back")
    assert read_groups(tmp_path / "back/groups.csv") == {"5.jpg": "1"}


@pytest.mark.parametrize("harm", ["cut", "empty", "gone"])
def test_verify_names_an_original_that_is_damaged(harm: str, originals: Path, packed: Path) -> None:
    if harm == "gone":
        (originals / "5.jpg").unlink()
    else:
        os.truncate(originals / "5.jpg", 2000 if harm == "cut" else 0)
    with pytest.raises(ppxcls.DataError, match=r"1 of 12 images differ from their originals: .*5\.jpg"):
        ppxcls.verify_pack(packed, originals / "train.txt")


def test_interrupted_work_with_damaged_parts_is_done_again(
    originals: Path, packed: Path, tmp_path: Path
) -> None:
    expected = {file.name: file.read_bytes() for file in packed.iterdir()}
    (packed / "pack.json").rename(packed / "pack.unfinished.json")
    (packed / "shard-00002.index").unlink()
    content = bytearray((packed / "shard-00004.data").read_bytes())
    content[1000] ^= 1
    (packed / "shard-00004.data").write_bytes(content)
    ppxcls.pack(originals / "train.txt", None, output=packed, samples_per_shard=2)
    assert {file.name: file.read_bytes() for file in packed.iterdir()} == expected
    (packed / "pack.json").unlink()
    (packed / "pack.unfinished.json").write_bytes(b"")
    ppxcls.pack(originals / "train.txt", None, output=packed, samples_per_shard=2)
    assert {file.name: file.read_bytes() for file in packed.iterdir()} == expected


def test_a_record_of_too_many_segments_is_not_read(packed: Path) -> None:
    """The segment table would fill the memory before it is compared with the picture's size."""
    manifest = json.loads((packed / "pack.json").read_text())
    index = np.load(packed / "shard-00000.index")
    index[0]["segments"] = 1 << 28
    with open(packed / "shard-00000.index", "wb") as stream:
        np.save(stream, index)
    os.truncate(packed / "shard-00000.data", 1 << 33)
    manifest["shards"][0]["bytes"] = 1 << 33
    index_file = packed / "shard-00000.index"
    manifest["shards"][0]["index_sha256"] = hashlib.sha256(index_file.read_bytes()).hexdigest()
    del manifest["sha256"]
    (packed / "pack.json").write_text(json.dumps(manifest))
    with pytest.raises(ppxcls.DataError, match="a record is larger than an image file may be"):
        PackedDataset(str(packed), DECODE).load(0)


def test_a_wrong_table_is_found_while_packing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each segment's DC is checked. If a part would have other pixels, the file is packed unchanged."""
    (tmp_path / "list.txt").write_text("grey.jpg 0\n")
    assert ppxcls.pack(tmp_path / "list.txt", photos, output=tmp_path / "right").segmented_images == 1
    found = write.rewrite_jpeg((photos / "grey.jpg").read_bytes())
    assert found is not None
    columns, rows = found.grid.columns, found.grid.rows
    for place in (columns + 1, (rows // 2) * columns + columns - 2):
        table = np.frombuffer(found.data, SEGMENT, offset=found.table).copy()
        table["dc"][place] += 40
        wrong = found._replace(data=found.data[: found.table] + table.tobytes())
        monkeypatch.setattr(write, "rewrite_jpeg", lambda _, wrong=wrong: wrong)
        assert (
            ppxcls.pack(tmp_path / "list.txt", photos, output=tmp_path / f"wrong-{place}").segmented_images
            == 0
        )


def test_every_damaged_index_is_an_error_of_the_data(packed: Path) -> None:
    file = packed / "shard-00000.index"
    good, rng = file.read_bytes(), np.random.default_rng(0)
    cases = [
        b"",
        b"PK\x03\x04" + good,
        b"\x93NUMPY\x01\x00\xff\xff",
        good[:100],
        good + b"x",
        b"\x80\x04\x95" * 20,
    ]
    for _ in range(400):
        changed = bytearray(good)
        for at in rng.integers(0, 128, int(rng.integers(1, 4))):
            changed[at] = int(rng.integers(256))
        cases.append(bytes(changed))
    for case in cases:
        file.write_bytes(case)
        dataset = PackedDataset(str(packed), DECODE)
        dataset.announce([0])
        if case != good:
            try:
                dataset.load(0)
            except ppxcls.DataError:
                continue
            assert case[128:] == good[128:]  # only blanks in the header have changed


@pytest.mark.parametrize("name", ["shard-00000.index", "shard-00000.data", "list.txt", "pack.json"])
def test_a_pipe_is_refused(name: str, packed: Path) -> None:
    (packed / name).unlink()
    os.mkfifo(packed / name)
    with pytest.raises(ppxcls.DataError):
        PackedDataset(str(packed), DECODE).load(0)
    with pytest.raises(ppxcls.DataError):
        ppxcls.verify_pack(packed)


def row(**fields: int) -> IndexRow:
    names = dict.fromkeys(RECORD.names or (), 0)
    return IndexRow(**{**names, **fields})


@pytest.mark.parametrize(
    "wrong",
    [{"segments": 1}, {"segments": 3}, {"scan": 5}, {"scan": 9999}, {"width": 72}, {"per_segment": 0}],
)
def test_segments_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    made = rewrite_jpeg(jpeg(photo(40, 8), subsampling=0))
    assert made is not None
    size = {"width": 40, "height": 8, "mcu_width": 8, "mcu_height": 8, "per_segment": 4}
    right = row(size=made.table, scan=made.scan, segments=2, **size)
    assert unpacked(right, made.data) == made
    changed = right._replace(**wrong)
    with pytest.raises(ValueError, match="its segments don't fit the record"):
        unpacked(changed, made.data.ljust(changed.bytes, b"x")[: changed.bytes])


def test_a_table_that_does_not_fit_the_coded_data_is_refused() -> None:
    made = rewrite_jpeg(jpeg(photo(40, 8), subsampling=0))
    assert made is not None
    with pytest.raises(ValueError, match="not the JPEG that its index describes"):
        SegmentedImage(made._replace(grid=made.grid._replace(height=60_000))).part(0, 50, 8, 8)
    for change in (-16, 16, 30_000):
        table = np.frombuffer(made.data, SEGMENT, offset=made.table).copy()
        table["bits"][1] = int(table["bits"][1]) + change
        image = SegmentedImage(made._replace(data=made.data[: made.table] + table.tobytes()))
        with pytest.raises(ValueError, match="not the JPEG that its index describes"):
            image.part(0, 0, 8, 8)


def test_a_frame_behind_a_comment_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checked size must be that of the frame, because the decoder allocates memory for it."""
    made = rewrite_jpeg(jpeg(photo(40, 8), subsampling=0))
    assert made is not None
    head = made.data[: HEIGHT_AT - 5]
    hidden = (
        head
        + b"\xff\xfe\x00\x0b\x00"
        + made.data[HEIGHT_AT : HEIGHT_AT + 4]
        + b"xxxx"
        + made.data[HEIGHT_AT - 5 :]
    )
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_: pytest.fail("it was decoded"))
    image = SegmentedImage(made._replace(data=hidden))
    for decode in (image.whole, lambda: image.part(0, 0, 8, 8)):
        with pytest.raises(ValueError, match="not the JPEG that its index describes"):
            decode()


@pytest.mark.parametrize("factors", [0x01, 0x10, 0x00, 0x51])
def test_impossible_sampling_factors(factors: int) -> None:
    data = bytearray(jpeg(photo(40, 30)))
    data[data.index(b"\xff\xc0") + 11] = factors
    assert rewrite_jpeg(bytes(data)) is None


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["LIST", "-o", "OUT", "--delimiter", ""], 1, "expected a delimiter of at least one character"),
        (["LIST", "-o", "OUT", "--threads", "-1"], 1, "expected threads from 1"),
        (["LIST", "-o", "OUT", "--delimiter", "\udcff"], 1, "train.txt"),
        (["LIST", "-o", "OUT", "--verify", "PACK"], 2, "expected one of packing, --verify and --unpack"),
        (["--verify", "memory://b"], 1, "expected a folder of this host"),
    ],
)
def test_wrong_usage_is_one_line(
    words: list[str], code: int, message: str, originals: Path, tmp_path: Path
) -> None:
    places = {"LIST": originals / "train.txt", "OUT": tmp_path / "out", "PACK": tmp_path / "packed"}
    result = run_tool("pack", *[places.get(word, word) for word in words])
    assert result.returncode == code
    assert "Traceback" not in result.stderr
    assert message in result.stderr


@pytest.fixture
def store(packed: Path) -> Any:
    """The packed data set in an in-memory store."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pipe({f"/faults/{file.name}": file.read_bytes() for file in packed.iterdir()})
    return memory


def largest(packed: Path) -> int:
    return max(shard.bytes for shard in read_pack_manifest(packed / "pack.json").shards)


def open_store(tmp_path: Path, size: float | None = None, **keys: Any) -> PackedDataset:
    return PackedDataset(
        "memory://faults",
        DECODE,
        cache_dir=str(tmp_path / "cache"),
        cache_gb=None if size is None else size / 1e9,
        **keys,
    )


def test_the_cache_keeps_its_bound_with_many_threads(
    store: Any, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 2 * largest(packed)
    kept = {file.name: file.stat().st_size for file in packed.glob("*.data")}
    dataset = open_store(tmp_path, bound)
    copy, seen = ObjectStore._copy, []

    def slow(self: Any, name: str, *limits: Any) -> None:
        time.sleep(0.02)
        copy(self, name, *limits)
        with locked(
            self._cache / f"{self._name}.lock"
        ):  # no copy is removed during this time; a copy may be renamed
            files = [*(tmp_path / "cache").rglob("*.data.new"), *(tmp_path / "cache").rglob("*.data")]
            seen.append(sum(kept[name] for name in {file.name.removesuffix(".new") for file in files}))

    monkeypatch.setattr(ObjectStore, "_copy", slow)
    expected = [PackedDataset(str(packed), DECODE).load(i) for i in range(12)]
    wrong: list[int] = []

    def read(first: int) -> None:
        for k in range(12):
            i = (first + k) % 12
            if not np.array_equal(dataset.load(i), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong
    assert len(seen) >= 6
    assert max(seen) <= bound


def test_a_cache_that_is_too_small_is_refused(store: Any, tmp_path: Path) -> None:
    with pytest.raises(ppxcls.DataError, match="cache_gb is less than the largest shard"):
        open_store(tmp_path, 1000)


def test_downloads_ahead_are_few_and_nobody_waits_for_them(store: Any, packed: Path, tmp_path: Path) -> None:
    dataset = open_store(tmp_path, 100 * largest(packed))
    for _ in range(5):
        dataset.announce(range(12))
    kept: Any = dataset._storage
    assert kept._requests.qsize() <= 8
    assert len(kept._workers) == 2
    assert all(worker.daemon for worker in kept._workers)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "cache").rglob("*.data"))) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(list((tmp_path / "cache").rglob("*.data"))) == 6


def cut_once(store: Any, monkeypatch: pytest.MonkeyPatch, extension: str) -> list[str]:
    """Makes the store's next file of this kind end after 50 bytes."""
    opened: list[str] = []
    plain = type(store).open

    def short(self: Any, path: str, *rest: Any, **keys: Any) -> Any:
        import io

        if path.endswith(extension) and not opened:
            opened.append(path)
            return io.BytesIO(self.cat_file(path)[:50])
        return plain(self, path, *rest, **keys)

    monkeypatch.setattr(type(store), "open", short)
    return opened


@pytest.mark.parametrize("extension", [".data", ".index", "list.txt"])
def test_a_short_copy_is_not_kept(
    extension: str, store: Any, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = cut_once(store, monkeypatch, extension)
    with pytest.raises(ppxcls.DataError, match="the copy is not whole: 50 bytes"):
        open_store(tmp_path, 100 * largest(packed)).load(0)
    assert len(opened) == 1
    np.testing.assert_array_equal(
        open_store(tmp_path, 100 * largest(packed)).load(0), PackedDataset(str(packed), DECODE).load(0)
    )


@pytest.mark.parametrize("when", ["manifest", "index", "record"])
def test_a_store_that_does_not_answer_is_asked_again(
    when: str, store: Any, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timeout errors have no error number.

    With ``patience`` the read is repeated. Without it, the message contains a reason.
    """
    failing = {"manifest": "pack.json", "index": ".index", "record": ".data"}[when]
    calls: list[str] = []

    def failing_once(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, path: str, *rest: Any, **keys: Any) -> Any:
            if path.endswith(failing) and not calls:
                calls.append(path)
                raise TimeoutError
            return plain(self, path, *rest, **keys)

        return call

    for name in ("open", "cat_file"):
        monkeypatch.setattr(type(store), name, failing_once(getattr(type(store), name)))
    with pytest.raises(ppxcls.DataError, match="TimeoutError"):
        open_store(tmp_path).load(0)
    calls.clear()
    expected = PackedDataset(str(packed), DECODE).load(0)
    np.testing.assert_array_equal(open_store(tmp_path, patience=5).load(0), expected)
    assert len(calls) == 1 or when != "record"


def test_a_changed_data_set_has_copies_of_its_own(
    store: Any, originals: Path, packed: Path, tmp_path: Path
) -> None:
    before = open_store(tmp_path, 100 * largest(packed))
    first = before.load(0)
    for i in range(12):
        (originals / f"{i}.jpg").write_bytes(jpeg(photo(160, 120, i + 1)))
    ppxcls.pack(originals / "train.txt", None, output=tmp_path / "other", samples_per_shard=2)
    store.pipe({f"/faults/{file.name}": file.read_bytes() for file in (tmp_path / "other").iterdir()})
    after = open_store(tmp_path, 100 * largest(packed))
    assert not np.array_equal(after.load(0), first)
    np.testing.assert_array_equal(before.load(0), first)


def test_copies_in_files_and_packed_data_are_found(originals: Path, packed: Path) -> None:
    """Packing changes the bytes, so pixels are compared."""
    sets = [PackedDataset(str(packed)), ImageNetDataset(str(originals), str(originals / "train.txt"))]
    report = check_lists(sets, 3)
    assert len(report.findings["in training and evaluation"]) == 12


def test_a_transform_derived_from_one_of_ours_gets_an_image(packed: Path) -> None:
    class Own(RandCropImage):
        def __call__(self, image: Any, rng: np.random.Generator) -> Any:
            return image[:2, :3]

    class Derived(RandCropImage):
        pass

    dataset = PackedDataset(str(packed), DECODE)
    compose = Compose([DecodeImage(), Own(size=5)])
    assert compose(dataset.read(0)).shape == (2, 3, 3)
    assert Compose([DecodeImage(), Derived(size=5)])(dataset.read(0)).shape == (5, 5, 3)


def damaged(packed: Path, name: str, place: int) -> None:
    content = bytearray((packed / name).read_bytes())
    content[place] ^= 1
    (packed / name).write_bytes(content)


def test_a_damaged_record_is_refused_and_others_are_read(packed: Path) -> None:
    expected = PackedDataset(str(packed), DECODE).load(1)
    damaged(packed, "shard-00000.data", 1000)
    dataset = PackedDataset(str(packed), DECODE)
    with pytest.raises(
        ppxcls.DataError, match="the record is damaged: its CRC-32 is not the one in the index"
    ):
        dataset.load(0)
    np.testing.assert_array_equal(dataset.load(1), expected)


def test_a_damaged_copy_is_copied_again(store: Any, packed: Path, tmp_path: Path) -> None:
    size = 100 * largest(packed)
    expected = open_store(tmp_path, size).load(0)
    (copy,) = (tmp_path / "cache").rglob("shard-00000.data")
    damaged(copy.parent, copy.name, 1000)
    np.testing.assert_array_equal(open_store(tmp_path, size).load(0), expected)
    assert copy.read_bytes() == (packed / copy.name).read_bytes()


def test_a_shard_that_is_damaged_in_the_store_is_not_copied(store: Any, packed: Path, tmp_path: Path) -> None:
    damaged(packed, "shard-00000.data", 1000)
    store.pipe({"/faults/shard-00000.data": (packed / "shard-00000.data").read_bytes()})
    with pytest.raises(ppxcls.DataError, match=r"is damaged: its SHA-256 is not the one in pack\.json"):
        open_store(tmp_path, 100 * largest(packed)).load(0)
    assert not list((tmp_path / "cache").rglob("*.data*"))


def test_changed_class_names_are_told_by_verifying(originals: Path, tmp_path: Path) -> None:
    (originals / "class_names.txt").write_text("0 a\n1 b\n2 c\n")
    ppxcls.pack(originals / "train.txt", None, output=tmp_path / "out", samples_per_shard=5)
    ppxcls.verify_pack(tmp_path / "out")
    (tmp_path / "out/class_names.txt").write_text("0 a\n1 b\n2 d\n")
    PackedDataset(str(tmp_path / "out"), DECODE).load(0)  # a user may rename a class
    with pytest.raises(ppxcls.DataError, match="was changed or damaged after it was packed"):
        ppxcls.verify_pack(tmp_path / "out")


def test_class_names_of_a_store_are_compared_too(
    originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    (originals / "class_names.txt").write_text("0 a\n1 b\n2 c\n")
    ppxcls.pack(originals / "train.txt", None, output=tmp_path / "out", samples_per_shard=5)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pipe({f"/names/{file.name}": file.read_bytes() for file in (tmp_path / "out").iterdir()})
    lines: list[str] = []
    monkeypatch.setattr("ppxcls.packed.dataset.warn_once", lines.append)
    folder = pack_folder("memory://names", str(tmp_path / "cache"))
    assert folder is not None
    (folder / "class_names.txt").write_text("0 a\n1 b\n2 d\n")  # a damaged copy
    assert pack_folder("memory://names", str(tmp_path / "cache")) == folder
    assert ((folder / "class_names.txt").read_text(), lines) == ("0 a\n1 b\n2 c\n", [])
    memory.pipe({"/names/class_names.txt": b"0 a\n1 b\n2 e\n"})
    (folder / "class_names.txt").unlink()
    assert pack_folder("memory://names", str(tmp_path / "cache")) == folder
    assert lines == [
        "memory://names/class_names.txt: was changed or damaged after it was packed; it is still used"
    ]


@pytest.mark.skipif(os.name == "nt", reason="Windows has access lists instead")
def test_a_cache_that_others_can_change_is_refused(store: Any, tmp_path: Path) -> None:
    """The user has named it, so another place would be a surprise."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(
        ppxcls.DataError, match=r"cache_dir .*cache can be written by everybody; name a folder"
    ):
        open_store(tmp_path)
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ppxcls.DataError, match="cache_dir .*cache: "):
        open_store(tmp_path)


class _Redirecting(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(308 if self.path == "/old" else 200)
        self.send_header("Location", "/new")
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"new")

    def log_message(self, *_: object) -> None:
        pass


def test_a_permanent_redirection_is_followed() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Redirecting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with WebFiles().open(f"http://127.0.0.1:{server.server_port}/old") as stream:
            assert stream.read(100) == b"new"
        server.shutdown()


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///x", "simplecache::s3://x/y", "reference://x"])
def test_other_protocols_are_refused(url: str) -> None:
    with pytest.raises(ppxcls.DataError, match="expected a folder, or a URL with one of s3, s3a, gs"):
        PackedDataset(url, DECODE)


def test_a_manifest_that_could_not_be_read_is_not_begun(originals: Path, tmp_path: Path) -> None:
    (originals / "many.txt").write_text("0.jpg 0\n" * 70_000)
    with pytest.raises(ppxcls.DataError, match="expected at most 65,536 shards, received 70,000"):
        ppxcls.pack(originals / "many.txt", None, output=tmp_path / "out", samples_per_shard=1)
