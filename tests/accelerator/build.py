"""Compiles the test device, and returns the environment in which Paddle has it."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import paddle
import pytest

from ppxcls.system.file_lock import locked

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).parent
LIBRARY = "libaccelerator.so"
OLDEST_PADDLE = (3, 3)  # older ones register kernels in another way
OPTIONS = ["-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-pthread", "-DPADDLE_WITH_CUSTOM_DEVICE"]


def obstacle() -> str | None:
    """Returns why the device can't be compiled here, or None."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the test device is for Linux on x86-64"
    version = paddle.__version__
    if tuple(int(number) for number in version.split(".")[:2]) < OLDEST_PADDLE:
        return f"the test device needs Paddle {'.'.join(map(str, OLDEST_PADDLE))} or newer, and this is {version}"
    if not Path(paddle.sysconfig.get_include()).is_dir() or not paddle_libraries().is_dir():
        return f"Paddle {version} came without its headers or libraries"
    if shutil.which("g++") is None:
        return "there is no g++ to compile the test device"
    return None


def paddle_libraries() -> Path:
    """Returns the folder of Paddle's libraries."""
    return Path(paddle.__file__).parent / "libs"


def library() -> Path:
    """Returns the device's library.

    It is compiled once for all processes: its folder has the hash of the sources and of Paddle's version in its
    name.
    """
    include = paddle.sysconfig.get_include()
    command = ["g++", *OPTIONS, "-I", include, "-I", f"{include}/third_party", str(SOURCES / "device.cc")]
    command += ["-L", str(paddle_libraries()), "-lphi_core", "-lcommon"]
    key = hashlib.sha256(f"{command} {paddle.version.full_version} {paddle.version.commit}".encode())
    for file in sorted([*SOURCES.glob("*.cc"), *SOURCES.glob("*.h")]):
        key.update(file.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"accelerator-{os.getuid()}-{key.hexdigest()[:16]}"
    folder.mkdir(exist_ok=True)
    target = folder / LIBRARY
    with locked(folder / "lock"):
        if not target.exists():
            partial = folder / "partial"
            result = subprocess.run(
                [*command, "-o", str(partial)], check=False, capture_output=True, text=True
            )
            if result.returncode:
                raise RuntimeError(f"the test device did not compile:\n{result.stderr[:4000]}")
            partial.replace(target)
    return target


def environment(**variables: str) -> dict[str, str]:
    """Returns the environment of a subprocess whose Paddle has the device.

    A test that calls this is skipped if the device can't be compiled here.

    Args:
        variables: further environment variables, such as ``ACCELERATOR_DELAY_US="2000"``, see ``device.cc``.
    """
    reason = obstacle()
    if reason:
        pytest.skip(reason)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "CUSTOM_DEVICE_ROOT": str(library().parent),
        "PYTHONPATH": os.pathsep.join(paths),
        "GLOG_minloglevel": "2",
        # An operator without a kernel is an error. Paddle would run it on the CPU, with copies both ways.
        "FLAGS_enable_api_kernel_fallback": "0",
        # Memory that is freed goes back to the device, which poisons it.
        "FLAGS_free_idle_chunk": "1",
        "FLAGS_auto_growth_chunk_size_in_mb": "0",
        **variables,
    }
