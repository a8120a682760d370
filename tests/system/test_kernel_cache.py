"""The cache of compiled kernels: whatever is in its folder, the results are right and nothing of others runs."""

from __future__ import annotations

import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

numba = pytest.importorskip("numba")

from ppxcls.system import kernel_cache  # noqa: E402
from ppxcls.system.kernel_cache import KernelCache, kernel_cache_folder  # noqa: E402
from ppxcls.system.own_folders import cache_folder  # noqa: E402

Texts = Callable[[], list[str]]
needs_root = pytest.mark.skipif(getattr(os, "getuid", int)() != 0, reason="only root can give files away")


def kernel(folder: Path, factor: int = 3, digest: str = "digest") -> Any:
    """Returns a new dispatcher of a function that multiplies by a factor, as a new process would have it."""

    def multiply(number: int) -> int:
        return number * factor

    dispatcher = numba.njit(multiply)
    dispatcher._cache = KernelCache(multiply, folder, digest)
    return dispatcher


def hits(dispatcher: Any) -> int:
    return sum(dispatcher.stats.cache_hits.values())


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_a_second_process_loads_the_code(tmp_path: Path) -> None:
    first, second = kernel(tmp_path), kernel(tmp_path)
    assert first(5) == 15
    assert hits(first) == 0
    assert stat.S_IMODE(only_file(tmp_path).stat().st_mode) == 0o600
    assert second(5) == 15
    assert hits(second) == 1


def test_each_kind_of_arguments_has_a_file(tmp_path: Path) -> None:
    first, second = kernel(tmp_path), kernel(tmp_path)
    assert (first(5), first(0.5)) == (15, 1.5)
    assert len(list(tmp_path.iterdir())) == 2
    assert (second(0.5), second(5)) == (1.5, 15)
    assert hits(second) == 2


def test_another_source_has_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(tmp_path)(5)
    other = kernel(tmp_path, factor=7, digest="another digest")
    assert other(5) == 35
    assert hits(other) == 0
    monkeypatch.setattr(numba.config, "BOUNDSCHECK", 1)
    with_checks = kernel(tmp_path)
    assert with_checks(5) == 15
    assert hits(with_checks) == 0, "code with bounds checks is other code"


def damaged(content: bytes) -> dict[str, bytes]:
    """Returns contents that a crash, a full disk or a bad memory could leave."""
    flips = {
        f"bit {position * 8}": content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        for position in range(0, len(content), len(content) // 40)
    }
    cuts = {
        f"{size} bytes": content[:size] for size in (0, 1, 31, 32, 33, len(content) // 2, len(content) - 1)
    }
    return {
        **flips,
        **cuts,
        "zeros": bytes(len(content)),
        "noise": bytes(i * 7919 % 256 for i in range(len(content))),
        "more": content + b"a",
        "a pickle": pickle.dumps({}),
    }


def test_a_damaged_file_is_written_again(tmp_path: Path) -> None:
    kernel(tmp_path)(5)
    file = only_file(tmp_path)
    content = file.read_bytes()
    for name, damaged_content in damaged(content).items():
        file.write_bytes(damaged_content)
        again = kernel(tmp_path)
        assert again(5) == 15, name
        assert hits(again) == 0, name
        assert hits_after(tmp_path) == 1, name


def hits_after(folder: Path) -> int:
    dispatcher = kernel(folder)
    assert dispatcher(5) == 15
    return hits(dispatcher)


def test_a_whole_file_of_another_key_is_not_loaded(tmp_path: Path) -> None:
    """Such as one that was renamed."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    kernel(tmp_path / "first", factor=7, digest="another digest")(5)
    kernel(tmp_path / "second")(5)
    os.replace(only_file(tmp_path / "first"), only_file(tmp_path / "second"))
    again = kernel(tmp_path / "second")
    assert again(5) == 15
    assert hits(again) == 0


class Evil:
    """Its pickle creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def replaced_by(content: bytes, folder: Path) -> Path:
    """Writes a file with a matching digest in the place of the kernel's."""
    cache = kernel(folder)._cache
    kernel(folder)(5)
    file = only_file(folder)
    _, key = cache._place((numba.int64,), numba.core.registry.cpu_target.target_context.codegen())
    assert file == cache._place((numba.int64,), numba.core.registry.cpu_target.target_context.codegen())[0]
    file.write_bytes(kernel_cache._digest(key, content) + content)
    return file


def test_the_digest_is_no_protection_from_this_user(tmp_path: Path) -> None:
    """Shows that the next tests test the owner and the mode, and nothing else."""
    (tmp_path / "cache").mkdir()
    replaced_by(pickle.dumps(Evil(tmp_path / "ran")), tmp_path / "cache")
    assert kernel(tmp_path / "cache")(5) == 15
    assert (tmp_path / "ran").exists()


@needs_root
@pytest.mark.parametrize("change", ["owner", "mode", "link", "pipe", "folder"])
def test_a_file_of_others_is_not_unpickled(change: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    file = replaced_by(pickle.dumps(Evil(tmp_path / "ran")), folder)
    if change == "owner":
        os.chown(file, 65534, 65534)
    elif change == "mode":
        file.chmod(0o666)
    elif change == "link":
        os.replace(file, tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    else:
        file.unlink()
        os.mkfifo(file) if change == "pipe" else file.mkdir()
    again = kernel(folder)
    assert again(5) == 15
    assert hits(again) == 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("problem", ["missing folder", "a file for the folder", "full disk"])
def test_code_that_can_not_be_stored(
    problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_warnings: Texts
) -> None:
    folder = tmp_path / "cache"
    if problem == "a file for the folder":
        folder.touch()
    elif problem == "full disk":
        folder.mkdir()

        def fail(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", fail)
    dispatcher = kernel(folder)
    assert (dispatcher(5), dispatcher(0.5)) == (15, 1.5)
    assert len(new_warnings()) == 1
    assert folder.is_file() or not folder.exists() or not list(folder.iterdir())


@needs_root
def test_the_choice_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_warnings: Texts
) -> None:
    """A folder that others can write is passed over, with one line."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    own_cache = tmp_path / "home/ppxcls/kernels"
    package, chosen_folder = tmp_path / "package", tmp_path / "chosen"
    (package / "__pycache__").mkdir(parents=True)
    assert kernel_cache_folder(package / "a_kernels.py") == package / "__pycache__"
    cache_folder.cache_clear()
    os.chown(package / "__pycache__", 65534, 65534)
    assert kernel_cache_folder(package / "a_kernels.py") == own_cache
    assert len(new_warnings()) == 1
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(chosen_folder))
    assert kernel_cache_folder(package / "a_kernels.py") == chosen_folder
    assert stat.S_IMODE(chosen_folder.stat().st_mode) == 0o700
    cache_folder.cache_clear()
    chosen_folder.chmod(0o777)
    assert kernel_cache_folder(package / "a_kernels.py") == own_cache
    (line,) = new_warnings()
    assert line.startswith(f"{chosen_folder} can be written by everybody")
    cache_folder.cache_clear()
