"""Looks over an installation: versions, devices, a training step on each, image libraries, threads, disk.

Nothing that is broken may end it: Paddle is imported and the steps are made in processes of their own,
because a library that does not fit can crash or hang a process. So this module imports neither Paddle nor
anything that needs it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppxcls._version import __version__
from ppxcls.system.environment import CPU_VARIABLES, installed_names, paddle_builds, usable_cores

_SECONDS = 300  # for an import or the steps of one device; the first step on a GPU compiles and searches
_NEEDED = ("numpy", "opencv-python-headless", "simplejpeg", "pillow", "pyyaml", "easydict", "tqdm")
_OPTIONAL = {
    "numba": "cpu",
    "onnxruntime": "export",
    "paddle2onnx": "export",
    "scikit-learn": "metrics",
    "visualdl": "visualdl",
    "safetensors": "convert",
    "h5py": "convert",
}
_GIGABYTE = 1 << 30

_FACTS = """
import json
from ppxcls.system import environment
environment.import_paddle()
import paddle
from ppxcls.system.distributed import available_devices
version = {name: str(getattr(paddle.version, name)()) for name in ("cuda", "cudnn", "nccl", "xpu", "xpu_xccl")
           if hasattr(paddle.version, name)}
devices = []
for kind in available_devices():
    if kind == "cpu":
        devices.append(["cpu", ""])
    elif kind == "gpu":
        properties = [paddle.device.cuda.get_device_properties(i) for i in range(paddle.device.cuda.device_count())]
        devices += [[f"gpu:{i}", f"{p.name}, {p.total_memory >> 30} GiB"] for i, p in enumerate(properties)]
    else:
        devices.append([f"{kind}:0", ""])
print("FACTS" + json.dumps({"paddle": paddle.__version__, "version": version, "devices": devices}))
"""
_STEP = """
import json, sys
from ppxcls import build_model
import paddle
from ppxcls.train.timed_steps import timed_steps
paddle.set_device(sys.argv[1])
paddle.seed(0)
model = build_model("Xception41", class_num=10)
optimizer = paddle.optimizer.Momentum(0.01, parameters=model.parameters())
images, labels = paddle.randn([8, 3, 96, 96]), paddle.arange(8)
times, value = timed_steps(model, optimizer, images, labels, 3)
print("FACTS" + json.dumps({"first": times[0], "seconds": min(times), "loss": value}))
"""


@dataclass
class Finding:
    """One line of the screen.

    Attributes:
        name: what was looked at.
        text: what was found.
        is_ok: whether it is as it must be.
    """

    name: str
    text: str
    is_ok: bool = True

    def __str__(self) -> str:
        return f"{'ok ' if self.is_ok else 'BAD'}  {self.name:<12} {self.text}"


def look(output: Path = Path()) -> Iterator[Finding]:
    """Look at everything, one finding after the other. Nothing is raised.

    Args:
        output: a folder of the disk that runs will write to.
    """
    yield Finding("ppxcls", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield from _guarded("packages", _packages)
    yield from _guarded("images", _images)
    yield from _guarded("threads", _threads)
    yield from _guarded("disk", lambda: _disk(output))
    facts, problem = _run(_FACTS)
    if facts is None:
        yield Finding("Paddle", problem, is_ok=False)
        return
    yield from _guarded("Paddle", lambda: _paddle(facts))
    for device, about in facts["devices"]:
        yield from _guarded(device, functools.partial(_step, device, about))


def _guarded(name: str, look_at: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look_at()
    except Exception as error:  # whatever is broken, the rest of the screen is wanted
        yield Finding(name, f"{type(error).__name__}: {' '.join(str(error).split())}", is_ok=False)


def _run(script: str, *arguments: str) -> tuple[dict[str, Any] | None, str]:
    """What a script reports in a process of its own; otherwise None and the reason in one line."""
    command = [sys.executable, "-c", script, *arguments]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (_root(), os.environ.get("PYTHONPATH")))),
    }
    try:
        done = subprocess.run(  # noqa: S603  the scripts above
            command,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer in {_SECONDS} s"
    for line in done.stdout.splitlines():
        if line.startswith("FACTS"):
            return json.loads(line[5:]), ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    ended = f"ended by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return None, f"{ended}: {lines[-1][:300] if lines else 'it said nothing'}"


def _root() -> str:
    return str(Path(__file__).resolve().parents[2])


def _packages() -> Iterator[Finding]:
    builds = sorted(paddle_builds(installed_names()))
    if len(builds) > 1:
        yield Finding(
            "packages",
            f"{' and '.join(builds)} lie over each other: uninstall them, and install one",
            is_ok=False,
        )
    found: list[str] = []
    missing: list[str] = []
    for name in _NEEDED:
        version = _version(name) or (_version("opencv-python") if name.startswith("opencv") else None)
        (found if version else missing).append(f"{name} {version}" if version else name)
    yield Finding("packages", ", ".join(found))
    if missing:
        yield Finding(
            "packages", f"missing: {', '.join(missing)}; pip install {' '.join(missing)}", is_ok=False
        )
    optional = {name: _version(name) for name in _OPTIONAL}
    yield Finding(
        "optional", ", ".join(f"{name} {version}" for name, version in optional.items() if version) or "none"
    )
    absent = [f"{name} ({_OPTIONAL[name]})" for name, version in optional.items() if not version]
    if absent:
        yield Finding(
            "optional", f"not installed: {', '.join(absent)}; pip install 'ppxcls[EXTRA]' if you need it"
        )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _images() -> Iterator[Finding]:
    import numpy as np

    decode = importlib.import_module("ppxcls.data.decode")
    cv2 = importlib.import_module("cv2")
    image = np.full((32, 48, 3), 100, np.uint8)
    for extension in (".jpg", ".png"):
        decoded = decode.decode_image(cv2.imencode(extension, image)[1].tobytes())
        if decoded.shape != image.shape or abs(int(decoded.mean()) - 100) > 1:
            yield Finding("images", f"{extension} is decoded wrongly", is_ok=False)
            return
    yield Finding("images", f"JPEG and PNG are decoded; OpenCV {cv2.__version__}")


def _threads() -> Iterator[Finding]:
    variables = [f"{name}={os.environ[name]}" for name in CPU_VARIABLES if name in os.environ]
    yield Finding(
        "threads",
        f"{usable_cores()} usable cores of {os.cpu_count()}; {', '.join(variables) or 'no variables set'}",
    )


def _disk(output: Path) -> Iterator[Finding]:
    usage = shutil.disk_usage(output)
    free = f"{usage.free / _GIGABYTE:.0f} of {usage.total / _GIGABYTE:.0f} GiB free at {output.resolve()}"
    is_writable = os.access(output, os.W_OK)
    yield Finding(
        "disk",
        free if is_writable else f"{free}, and it can't be written",
        is_ok=is_writable and usage.free > _GIGABYTE,
    )
    shared = Path("/dev/shm")  # noqa: S108  it is only looked at
    size = f"{shutil.disk_usage(shared).total / _GIGABYTE:.1f} GiB" if shared.is_dir() else "missing"
    yield Finding("shared", f"{shared} of {size}; it is not needed, because threads load the images")


def _paddle(facts: dict[str, Any]) -> Iterator[Finding]:
    libraries = [
        f"{name} {value}"
        for name, value in facts["version"].items()
        if value not in ("False", "0", "None", "")
    ]
    yield Finding("Paddle", f"{facts['paddle']}, {', '.join(libraries) or 'a CPU build'}")
    if len([device for device, _ in facts["devices"] if device != "cpu"]) > 1 and not any(
        "ccl" in name for name in libraries
    ):
        yield Finding(
            "Paddle",
            "several devices, and no NCCL or vendor's library to train on them together",
            is_ok=False,
        )


def _step(device: str, about: str) -> Iterator[Finding]:
    facts, problem = _run(_STEP, device)
    named = f"{about}: " if about else ""
    if facts is None:
        yield Finding(device, f"{named}a training step fails: {problem}", is_ok=False)
        return
    rate = (
        f"{facts['seconds']:.3f} s a step of Xception41, 8 images of 96 px; the first {facts['first']:.1f} s"
    )
    is_finite = facts["loss"] == facts["loss"] and abs(facts["loss"]) < 1e6
    yield Finding(device, f"{named}{rate}; loss {facts['loss']:.3f}", is_ok=is_finite)
