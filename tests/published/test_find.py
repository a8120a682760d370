"""Words of published weights, and the places where their files lie on this machine."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from hostility.servers.files import FileServer, answer

import ppxcls
from ppxcls.build.choices import weights_for
from ppxcls.config.load import RUN_CONFIG_HEADER
from ppxcls.models.weights import save_weights
from ppxcls.published import caches, catalogue, find
from ppxcls.published.web import FetchError
from ppxcls.published.words import WordError, remote_files
from ppxcls.system.logs import logger, set_up_logging
from tests.conftest import ROOT, run_tool

DATA = bytes(range(256)) * 40
NAME = "xception65.ra3_in1k"
FILE = "model.safetensors"


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, without a connection."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PPXCLS_OFFLINE", "1")
    return tmp_path / "here"


def keep(file: Path, data: bytes = DATA) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def hub_file(root: Path, repository: str, data: bytes = DATA, name: str = FILE) -> Path:
    """Writes a file as the hub's own library does: a blob, and a link to it."""
    folder = root / f"models--{repository.replace('/', '--')}"
    revision = "a" * 40
    keep(folder / "refs/main", revision.encode())
    blob = keep(folder / "blobs" / hashlib.sha256(DATA).hexdigest(), data)
    link = folder / "snapshots" / revision / name
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


def is_of_this_package(network: str) -> bool:
    return ppxcls.MODELS.components()[network].__module__.startswith("ppxcls.")


def test_the_catalogue_has_weights_of_every_network() -> None:
    entries = catalogue.CATALOGUE
    networks = {entry.network for entry in entries}
    assert networks == {name for name in ppxcls.list_models() if is_of_this_package(name)}
    for text in ("name", "file"):
        assert len({getattr(entry, text) for entry in entries}) == len(entries)
    for entry in entries:
        assert bool(entry.addresses) != bool(entry.repository)
        assert entry.source.startswith(("https://", "http://data.lip6.fr/"))
        assert (entry.top1 is None) is not entry.has_classifier
        assert entry.sha256 is None or len(entry.sha256) == 64
        assert entry.md5 is None or len(entry.md5) == 32
        assert f"-{entry.sha256_start}." in entry.file or not entry.sha256_start
        assert entry.size is None or round(entry.size / 1e6) == entry.megabytes
        published = ppxcls.MODELS.fact(entry.network, "published")
        assert entry.publisher in (published.source, "Cadene")
    for network in networks:
        default = catalogue.default_entry(network)
        assert default is not None
        assert default.has_classifier
        assert catalogue.entry_of(network) == default


def test_the_page_lists_the_catalogue() -> None:
    """Name, network, published figures, size, licence and publisher of each file."""
    page = (ROOT / "docs/weights.md").read_text(encoding="utf-8")
    for entry in catalogue.CATALOGUE:
        figures = "a trunk" if entry.top1 is None else f"{entry.top1:.4f} / {entry.top5:.4f}"
        row = f"| `{entry.name}` | `{entry.network}` | {figures} | {entry.megabytes} | {entry.licence} | "
        assert f"{row}{entry.publisher} | " in page


def test_other_pages_have_the_figures_of_the_catalogue() -> None:
    """Each top-1 in the table of networks, and in a recipe, is that of some file of the network."""
    page = (ROOT / "docs/networks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*) \| (?:PaddleClas|timm|Keras) \|[^|]*\| (0\.\d+)", page, re.MULTILINE)
    texts = [(re.findall(r"`([^`]+)`", names), figure) for names, figure in rows]
    for file in (ROOT / "configs/recipes").glob("*.yaml"):
        recipe = file.read_text(encoding="utf-8")
        if match := re.search(r"timm reports top-1 (0\.\d+)", recipe):
            name = re.search(r"^Arch: \{name: (\w+)", recipe, re.MULTILINE)
            assert name is not None
            texts.append(([name[1]], match[1]))
    assert len(texts) >= 10  # the table and two recipes
    for networks, figure in texts:
        published = [entry.top1 or 0.0 for entry in catalogue.CATALOGUE if entry.network in networks]
        rounding = 0.5 * 10 ** -len(figure.partition(".")[2]) + 1e-9
        assert any(abs(top1 - float(figure)) <= rounding for top1 in published), (networks, figure)


@pytest.mark.parametrize(
    "word",
    [
        True,
        "imagenet",
        NAME,
        f"timm/{NAME}",
        "Xception",
        "Xception41",
        "xception65",
        "xception-b5690688",
        "hf-hub:timm/x",
        "hf_hub:a/b",
        "https://a.org/x.h5",
        "http://a.org/x.h5",
        "HTTPS://a.org/x.h5",
    ],
)
def test_words(word: str | bool) -> None:
    assert find.is_weights_word(word)


@pytest.mark.parametrize(
    "path",
    [
        False,
        None,
        "",
        "a.pdparams",
        "output/best_model",
        "/a/Xception41",
        "./Xception41",
        "Xception41.pdparams",
        "xception65.ra3",
        "s3://a/b.h5",
        "file:///a.h5",
        "timm/Xception41",
        1,
    ],
)
def test_other_values_are_no_words(path: object) -> None:
    assert not find.is_weights_word(path)


@pytest.mark.parametrize(
    ("word", "network", "message"),
    [
        (NAME, "xception41", "these are weights of xception65, and the network is xception41"),
        ("Xception41", "xception41", "these are weights of Xception41, and the network is xception41"),
        (f"hf-hub:timm/{NAME}", "Xception", "these are weights of xception65, and the network is Xception"),
        ("hf-hub:timm", None, "expected hf-hub:OWNER/REPO"),
        ("hf-hub:../x", None, "expected hf-hub:OWNER/REPO"),
        ("hf-hub:a/b/../c.h5", None, "expected hf-hub:OWNER/REPO"),
        ("hf-hub:a/b@c d", None, "expected hf-hub:OWNER/REPO"),
        ("hf-hub:a/b/c.txt", None, "expected the address of a weights file"),
        ("https://a.org/", None, "expected the address of a weights file"),
        ("https://a.org/x.zip", None, "expected the address of a weights file"),
        ("https:///x.h5", None, "expected an address that begins with https:// or http://"),
        ("https://a.org:99999/x.h5", None, "expected an address that begins"),
        ("https://a.org/x y.h5", None, "expected an address that begins"),
        ("https://user:word@a.org/x.h5", None, "refused, an address with a user name"),
        ("https://a.org/" + "x" * 3000 + ".h5", None, "an address may have 2,000 characters"),
        (
            "https://huggingface.co/a/b/blob/main/x.h5",
            None,
            "the file is at https://huggingface.co/a/b/resolve/",
        ),
        (
            "https://github.com/a/b/blob/main/x.h5",
            None,
            "the file is at https://github.com/a/b/raw/main/x.h5",
        ),
    ],
)
def test_words_that_mean_nothing(word: str, network: str | None, message: str, here: Path) -> None:
    with pytest.raises(WordError, match=message):
        find.weights_path(word, network)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xception65.ra3_in1", "did you mean 'xception65.ra3_in1k'"),
        ("Xceptio", "did you mean 'Xception'"),
        ("resnet50", "no name of published weights; 'ppxcls weights' lists the names"),
    ],
)
def test_a_misspelled_name_is_answered_with_the_next_one(name: str, message: str, here: Path) -> None:
    for call in (find.weights_path, ppxcls.fetch_weights):
        with pytest.raises(WordError, match=message):
            call(name)


@pytest.mark.parametrize("path", ["a/b", "best.pdparams", "./x", "/x/y", "model.safetensors", "x.pth.tar"])
def test_paths_are_returned_as_they_are(path: str, here: Path) -> None:
    assert find.weights_path(path) == Path(path)


def test_a_file_comes_before_a_word_of_its_name(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(here / "Xception41.pdparams")
    keep(here / "notes.safetensors")
    logging.getLogger("ppxcls").addHandler(caplog.handler)
    try:
        assert find.weights_path("Xception41", "Xception41") == Path("Xception41.pdparams")
    finally:
        logging.getLogger("ppxcls").removeHandler(caplog.handler)
    assert "the file Xception41.pdparams is used, and not the published weights" in caplog.text
    assert find.weights_path("notes") == Path("notes")
    (here / "imagenet").mkdir()  # a folder is not meant
    with pytest.raises(FetchError, match="PPXCLS_OFFLINE forbids"):
        find.weights_path("imagenet", "Xception41")


def test_a_folder_of_the_name_of_a_word_does_not_become_a_path(here: Path) -> None:
    (here / "imagenet").mkdir()
    file = here / "run.yaml"
    file.write_text(
        "Arch: {name: Xception41, pretrained: imagenet}\nGlobal: {pretrained_model: Xception41}\n"
    )
    config = ppxcls.load_config(file)
    assert config.Arch.pretrained == "imagenet"
    assert config.Global.pretrained_model == "Xception41"
    assert "pretrained: imagenet" in config.to_yaml()
    assert "pretrained_model: Xception41" in config.to_yaml()


FOREIGN = {
    "Xception41": ".paddleclas/weights/Xception41_pretrained.pdparams",
    "Xception": ".keras/models/xception_weights_tf_dim_ordering_tf_kernels.h5",
    "legacy_xception": ".cache/torch/hub/checkpoints/xception-43020ad28.pth",
}


@pytest.mark.parametrize("word", FOREIGN)
def test_files_of_other_programs_are_found(
    word: str, here: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = keep(home / FOREIGN[word])
    monkeypatch.setattr(caches, "published_problem", lambda *_: None)
    assert find.weights_path(word) == find.cached_weights(word) == file
    rows = {row.weights.name: row.path for row in ppxcls.list_weights()}
    assert [path for path in rows.values() if path] == [file]


@pytest.mark.parametrize("word", ["Xception", "legacy_xception"])
def test_files_of_other_programs_are_compared_with_the_published_digest(
    word: str, here: Path, home: Path
) -> None:
    keep(home / FOREIGN[word])
    assert find.cached_weights(word) is None
    with pytest.raises(FetchError, match="PPXCLS_OFFLINE"):
        find.weights_path(word)


@pytest.mark.parametrize(
    ("variable", "file", "word"),
    [
        ("KERAS_HOME", "models/xception_weights_tf_dim_ordering_tf_kernels.h5", "Xception"),
        ("TORCH_HOME", "hub/checkpoints/xception-43020ad28.pth", "legacy_xception"),
        ("XDG_CACHE_HOME", "torch/hub/checkpoints/xception-43020ad28.pth", "legacy_xception"),
    ],
)
def test_variables_of_other_programs_count(
    variable: str, file: str, word: str, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "other"))
    monkeypatch.setattr(caches, "published_problem", lambda *_: None)
    path = keep(tmp_path / "other" / file)
    assert find.weights_path(word) == path


@pytest.mark.parametrize(
    "variable", [None, "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"]
)
def test_files_of_the_hubs_library_are_found(
    variable: str | None, here: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = home / ".cache/huggingface/hub"
    if variable is not None:
        monkeypatch.setenv(variable, str(tmp_path / "other"))
        below = {"HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}.get(variable, "")
        root = tmp_path / "other" / below
    link = hub_file(root, f"timm/{NAME}")
    assert find.weights_path(NAME) == find.weights_path(f"hf-hub:timm/{NAME}") == link
    other = hub_file(root, "me/mine", name="pytorch_model.bin")
    assert find.weights_path("hf-hub:me/mine") == other
    assert find.weights_path("hf-hub:me/mine/pytorch_model.bin") == other


def test_a_damaged_blob_of_the_hubs_library_is_not_used(here: Path, home: Path) -> None:
    hub_file(home / ".cache/huggingface/hub", f"timm/{NAME}", data=DATA[::-1])
    with pytest.raises(FetchError, match="PPXCLS_OFFLINE"):
        find.weights_path(NAME)


@pytest.mark.parametrize("content", [b"../../../x", b"", b"\xff", b"a" * 100_000])
def test_a_hostile_reference_of_the_hubs_library(content: bytes, here: Path, home: Path) -> None:
    keep(home / f".cache/huggingface/hub/models--timm--{NAME}/refs/main", content)
    with pytest.raises(FetchError, match="PPXCLS_OFFLINE"):
        find.weights_path(NAME)


def test_a_copied_cache_works_offline(here: Path, tmp_path: Path) -> None:
    file = keep(tmp_path / f"cache/weights/{NAME}.safetensors")
    (tmp_path / "cache").chmod(0o700)
    assert find.weights_path(NAME) == file
    wrong = keep(tmp_path / "cache/weights/xception41p.ra3_in1k.safetensors")
    with pytest.raises(FetchError, match="PPXCLS_OFFLINE"):
        find.weights_path("xception41p.ra3_in1k")
    assert not wrong.exists()  # its published digest is known, and another one


def test_a_link_in_the_cache_is_not_followed(here: Path, tmp_path: Path) -> None:
    (tmp_path / "cache/weights").mkdir(mode=0o700, parents=True)
    (tmp_path / f"cache/weights/{NAME}.safetensors").symlink_to(keep(tmp_path / "elsewhere"))
    with pytest.raises(FetchError, match="PPXCLS_OFFLINE"):
        find.weights_path(NAME)


# With a server


def test_an_address(server: FileServer, cache: Path) -> None:
    server.files["/a/my%20net.weights.h5"] = DATA
    file = find.weights_path(f"{server.address}/a/my%20net.weights.h5?download=true#x")
    assert file.parent == cache
    assert file.name.startswith("my_net.weights-")
    assert file.suffix == ".h5"
    server.files["/b/my%20net.weights.h5"] = DATA[::-1]
    assert find.weights_path(f"{server.address}/b/my%20net.weights.h5") != file


def test_weights_of_another_network_do_not_stay(
    server: FileServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    for name, value in (("HOME", tmp_path), ("PPXCLS_CACHE", tmp_path / "cache"), ("PPXCLS_OFFLINE", "0")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("no_proxy", "*")
    save_weights(ppxcls.build_model("legacy_xception", class_num=3), tmp_path / "w.safetensors")
    server.files["/x.safetensors"] = (tmp_path / "w.safetensors").read_bytes()
    address = f"{server.address}/x.safetensors"
    with pytest.raises(FetchError, match="it does not fit Xception41: "):
        find.weights_path(address, "Xception41")
    assert list(cache.iterdir()) == []
    model = ppxcls.build_model("legacy_xception", class_num=3, pretrained=address)
    assert len(list(cache.iterdir())) == 2
    assert ppxcls.load_weights(model, address) == []
    server.files["/y.safetensors"] = b"<!DOCTYPE html><html>no"
    with pytest.raises(FetchError, match="it is no file of weights, but an HTML page"):
        find.weights_path(f"{server.address}/y.safetensors", "Xception41")
    assert len(list(cache.iterdir())) == 2


def test_the_weights_of_a_users_own_network(server: FileServer, tmp_path: Path) -> None:
    facts = ppxcls.Preprocessing(
        source="me",
        input_size=64,
        crop_share=None,
        interpolation="bilinear",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        url=f"{server.address}/mine.pdparams",
    )
    server.files["/mine.pdparams"] = DATA
    name = "OwnNetworkWithWeights"

    def build(class_num: int = 2) -> object:
        raise AssertionError

    build.__name__ = build.__qualname__ = name
    build.__doc__ = "A network."
    ppxcls.MODELS.register(published=facts)(build)  # type: ignore[arg-type]
    try:
        assert find.weights_path(True, name).read_bytes() == DATA
    finally:
        ppxcls.MODELS._components.pop(name, None)


@pytest.mark.parametrize("key", ["Arch.pretrained", "Global.pretrained_model"])
def test_configs_take_words(key: str, server: FileServer, write_config: Callable[..., Path]) -> None:
    server.files[f"/timm/{NAME}/resolve/main/{FILE}"] = DATA
    config = ppxcls.load_config(write_config(), ["Arch.name=xception65", f"{key}={NAME}"])
    weights = weights_for(config, "evaluate")
    assert weights is not None
    assert weights.path.endswith(f"{NAME}.safetensors")
    wrong = ppxcls.load_config(write_config(), [f"{key}={NAME}"])
    with pytest.raises(ppxcls.ConfigError, match=f"{key}: {NAME}: these are weights of xception65"):
        weights_for(wrong, "train")
    misspelled = ppxcls.load_config(write_config(), [f"{key}=imagenets"])
    with pytest.raises(ppxcls.ConfigError, match=f"{key}: imagenets: no such file.*did you mean 'imagenet'"):
        weights_for(misspelled, "train")


@pytest.mark.parametrize(
    ("tool", "next_step"), [("trainer", "network_classes"), ("evaluation", "class_names_for")]
)
def test_the_log_of_a_run_says_what_was_fetched(
    tool: str,
    next_step: str,
    write_config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Weights are fetched before the run's folder is written, so its log does not exist yet."""
    module = importlib.import_module(f"ppxcls.build.{tool}")
    config = ppxcls.load_config(write_config())

    def fetch_some(*_: object) -> SimpleNamespace | None:
        logger.info("fetching some weights")
        assert not config.run_folder.exists()
        return SimpleNamespace(path="x") if tool == "evaluation" else None

    monkeypatch.setattr(module, "weights_for", fetch_some)
    monkeypatch.setattr(module, next_step, mock.Mock(side_effect=InterruptedError))
    with pytest.raises(InterruptedError):
        ppxcls.build_trainer(config) if tool == "trainer" else ppxcls.evaluate(config)
    logger.info("later")
    set_up_logging()
    for text in (capsys.readouterr().out, (config.run_folder / "train.log").read_text(encoding="utf-8")):
        assert text.count("INFO: fetching some weights\n") == text.count("INFO: later\n") == 1


def test_the_config_of_a_strangers_run_names_no_repository(tmp_path: Path, home: Path) -> None:
    run = tmp_path / "Xception41"
    run.mkdir()
    text = ppxcls.load_config({"Arch": {"name": "Xception41", "pretrained": "hf-hub:bad/net"}}).to_yaml()
    (run / "config.yaml").write_text(f"{RUN_CONFIG_HEADER}\n{text}")
    with pytest.raises(ppxcls.ConfigError, match=r"Arch\.pretrained: refused, .* names an address"):
        ppxcls.load_config(run)


def test_the_verb_lists_and_fetches(server: FileServer, cache: Path) -> None:
    listing = run_tool("weights")
    assert listing.returncode == 0, listing.stderr
    assert [line.split()[0] for line in listing.stdout.splitlines()[1:16]] == [
        entry.name for entry in catalogue.CATALOGUE
    ]
    for line, entry in zip(listing.stdout.splitlines()[1:], catalogue.CATALOGUE, strict=False):
        assert line.endswith(f"  no      {entry.publisher}, {entry.source}")
    server.files["/mine.pdparams"] = b"\x80\x02}q\x00."
    fetched = run_tool("weights", f"{server.address}/mine.pdparams")
    assert fetched.returncode == 0, fetched.stderr
    assert fetched.stdout.strip() == str(next(iter(cache.glob("*.pdparams"))))
    assert "fetching" in fetched.stderr
    keep(cache / f"{NAME}.safetensors")
    cached = [line.split()[0] for line in run_tool("weights").stdout.splitlines() if "  yes  " in line]
    assert cached == [NAME]
    rows = {row["name"]: row for row in json.loads(run_tool("weights", "--json").stdout)}
    assert rows[NAME]["path"] == str(cache / f"{NAME}.safetensors")
    assert rows["Xception"]["path"] is None
    assert rows["Xception"]["md5"] == "0a58e3b7378bc2990ea3b43d5981f1f6"
    for words, message in ((["nothing"], "no such file"), (["Xception", "--json"], "received both")):
        wrong = run_tool("weights", *words)
        assert wrong.returncode
        assert message in wrong.stderr
        assert len(wrong.stderr.strip().splitlines()) == 1


def test_fit_takes_words_before_anything_else(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    server.tricks, server.is_last_kept = [answer(404)], True
    with pytest.raises(FetchError, match="the server has no such file"):
        ppxcls.fit(tmp_path / "photos", weights=NAME, output=tmp_path / "out")
    with pytest.raises(WordError, match="the network is xception41"):
        ppxcls.fit(tmp_path / "photos", weights=NAME, network="xception41", output=tmp_path / "out")
    with pytest.raises(WordError, match="did you mean 'imagenet'"):
        ppxcls.fit(tmp_path / "photos", weights="imagenett", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_imagenet_means_the_weights_of_the_model(server: FileServer) -> None:
    model = ppxcls.build_model("xception41", class_num=3)
    for call in (
        lambda: ppxcls.load_weights(model, "imagenet"),
        lambda: ppxcls.build_model("xception41", pretrained=True),
        lambda: ppxcls.convert_weights("imagenet", "xception41", "x.safetensors"),
    ):
        server.requests.clear()
        with pytest.raises(FetchError, match="the server has no such file"):
            call()
        assert [request.path for request in server.requests] == [
            "/timm/xception41.tf_in1k/resolve/main/model.safetensors"
        ]


def test_variables_that_are_wrong(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "ftp://mirror")
    with pytest.raises(WordError, match="environment variable HF_ENDPOINT: expected an address"):
        find.weights_path(NAME)
    assert find.cached_weights("xception65") is None
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setenv("HF_TOKEN", "a\nb")
    with pytest.raises(FetchError, match="HF_TOKEN: expected a token"):
        find.weights_path(NAME)


def test_words_that_mean_the_same_have_one_file() -> None:
    same = ("hf-hub:a/b", "hf_hub:a/b", "hf-hub:a/b@main", "hf-hub:a/b/model.safetensors")
    assert len({remote_files(word)[0].file for word in same}) == 1
    others = ("hf-hub:a/b@v1", "hf-hub:a/c", "hf-hub:a/b/c/model.safetensors", "hf-hub:a/b/pytorch_model.bin")
    assert len({remote_files(word)[0].file for word in (same[0], *others)}) == 5


def test_extensions_may_be_in_capitals(here: Path) -> None:
    for word in ("https://a.org/NET.PTH", "hf-hub:me/x/NET.PTH"):
        assert remote_files(word)[0].file.endswith(".pth")
    assert find.weights_path("NET.PTH") == Path("NET.PTH")
