"""Checks an installation: versions, devices, a training step on each device, image libraries, threads, disk.

A broken library must not end the check. An incompatible library can crash or hang a process, so separate
processes import Paddle and run the training steps. For the same reason, this module imports neither Paddle
nor a module that needs Paddle.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppxcls._version import __version__
from ppxcls.system.current_folder import code_command
from ppxcls.system.environment import CPU_VARIABLES, installed_names, paddle_builds, usable_cores

_TIMEOUT_SECONDS = 300  # for an import or one device's steps; the first step on a GPU compiles and searches
_REQUIRED_PACKAGES = ("numpy", "opencv-python-headless", "simplejpeg", "pillow", "pyyaml", "easydict", "tqdm")
_EXTRA_BY_PACKAGE = {
    "numba": "cpu",
    "onnx": "export",
    "onnxruntime": "export",
    "scikit-learn": "metrics",
    "visualdl": "visualdl",
    "safetensors": "convert",
    "h5py": "convert",
}
_BYTES_PER_GIB = 1 << 30

# Largest memory of the outputs that the backward pass needs, for an image of 299 px in float32: computed.
_MIB_PER_IMAGE = {"Xception41": 363, "xception41": 394, "Xception65": 483}
_BATCH_IMAGES = 64  # images; batch size of the configs
_TF32_CAPABILITY = 8  # major version of the GPUs that have TensorFloat-32
_NO_VERSION = ("False", "0", "None", "")

_FACTS_SCRIPT = """
from ppxcls.system import environment
environment.import_paddle()
from ppxcls.cli.device_facts import paddle_facts, print_facts
print_facts(paddle_facts())
"""
_STEP_SCRIPT = """
import sys
from ppxcls import build_model
import paddle
from ppxcls.cli.device_facts import computes_in_bfloat16, print_facts
from ppxcls.system.devices import DeviceError, run_one_operator
from ppxcls.train.timed_steps import timed_steps
paddle.set_device(sys.argv[1])
try:
    run_one_operator(sys.argv[1])
except DeviceError as error:
    sys.exit(str(error))
paddle.seed(0)
model = build_model("Xception41", class_num=10)
optimizer = paddle.optimizer.Momentum(0.01, parameters=model.parameters())
images, labels = paddle.randn([8, 3, 96, 96]), paddle.arange(8)
times, value = timed_steps(model, optimizer, images=images, labels=labels, count=3)
bfloat16 = computes_in_bfloat16()
print_facts({"first": times[0], "seconds": min(times), "loss": value, "bfloat16": bfloat16})
"""


@dataclass
class Finding:
    """The result of one check: one line of the output.

    Attributes:
        name: name of the checked part.
        text: description of the result.
        is_ok: True if the part works.
    """

    name: str
    text: str
    is_ok: bool = True

    def __str__(self) -> str:
        return f"{'ok ' if self.is_ok else 'BAD'}  {self.name:<12} {self.text}"


def run_checks(output: Path = Path()) -> Iterator[Finding]:
    """Runs all checks, and yields their findings one by one. It raises nothing.

    Args:
        output: folder on the disk that runs will write to.
    """
    yield Finding("ppxcls", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield from _catch_errors("packages", _packages)
    yield from _catch_errors("images", _images)
    yield from _catch_errors("threads", _threads)
    yield from _catch_errors("disk", lambda: _disk(output))
    facts, problem = _run(_FACTS_SCRIPT)
    if facts is None:
        yield Finding("Paddle", problem, is_ok=False)
        return
    yield from _catch_errors("Paddle", lambda: _paddle(facts))
    yield from _catch_errors("loader", lambda: _loader(facts))
    for device in facts["devices"]:
        yield from _catch_errors(device["name"], functools.partial(_step, device))
        yield from _catch_errors(device["name"], functools.partial(_gpu, device, facts))


def _catch_errors(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # a broken part must not prevent the other checks
        yield Finding(name, f"{type(error).__name__}: {' '.join(str(error).split())}", is_ok=False)


def _run(script: str, *arguments: str) -> tuple[dict[str, Any] | None, str]:
    """Runs a script in a separate process.

    Returns:
        The facts that the script printed and an empty text; if it failed, None and the reason in one line.
    """
    command = [*code_command(script), *arguments]
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": os.pathsep.join(filter(None, (_root(), os.environ.get("PYTHONPATH")))),
    }
    try:
        process = subprocess.run(  # noqa: S603  the scripts above
            command,
            check=False,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer in {_TIMEOUT_SECONDS} s"
    for line in process.stdout.splitlines():
        if line.startswith("FACTS"):
            return json.loads(line[5:]), ""
    lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
    outcome = (
        f"ended by signal {-process.returncode}"
        if process.returncode < 0
        else f"exit code {process.returncode}"
    )
    return None, f"{outcome}: {lines[-1][:300] if lines else 'no output'}"


def _root() -> str:
    return str(Path(__file__).resolve().parents[2])


def _packages() -> Iterator[Finding]:
    builds = sorted(paddle_builds(installed_names()))
    if len(builds) > 1:
        yield Finding(
            "packages",
            f"{' and '.join(builds)} overwrite each other's files: uninstall them, and install one",
            is_ok=False,
        )
    versions: list[str] = []
    missing_packages: list[str] = []
    for name in _REQUIRED_PACKAGES:
        version = _version(name) or (_version("opencv-python") if name.startswith("opencv") else None)
        if version:
            versions.append(f"{name} {version}")
        else:
            missing_packages.append(name)
    yield Finding("packages", ", ".join(versions))
    if missing_packages:
        yield Finding(
            "packages",
            f"missing: {', '.join(missing_packages)}; pip install {' '.join(missing_packages)}",
            is_ok=False,
        )
    optional_versions = {name: _version(name) for name in _EXTRA_BY_PACKAGE}
    yield Finding(
        "optional",
        ", ".join(f"{name} {version}" for name, version in optional_versions.items() if version) or "none",
    )
    missing_extras = [
        f"{name} ({_EXTRA_BY_PACKAGE[name]})" for name, version in optional_versions.items() if not version
    ]
    if missing_extras:
        yield Finding(
            "optional",
            f"not installed: {', '.join(missing_extras)}; pip install 'ppxcls[EXTRA]' if you need it",
        )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _images() -> Iterator[Finding]:
    import numpy as np

    from ppxcls.data import decode

    cv2 = importlib.import_module("cv2")
    image = np.full((32, 48, 3), 100, np.uint8)
    for extension in (".jpg", ".png"):
        decoded_image = decode.decode_image(cv2.imencode(extension, image)[1].tobytes())
        if decoded_image.shape != image.shape or abs(int(decoded_image.mean()) - 100) > 1:
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
    text = (
        f"{usage.free / _BYTES_PER_GIB:.0f} of "
        f"{usage.total / _BYTES_PER_GIB:.0f} GiB free at {output.resolve()}"
    )
    is_writable = os.access(output, os.W_OK)
    yield Finding(
        "disk",
        text if is_writable else f"{text}, and it can't be written",
        is_ok=is_writable and usage.free > _BYTES_PER_GIB,
    )
    shared_memory = Path("/dev/shm")  # noqa: S108  it is only looked at
    size = (
        f"{shutil.disk_usage(shared_memory).total / _BYTES_PER_GIB:.1f} GiB"
        if shared_memory.is_dir()
        else "missing"
    )
    reason = "not needed, because the loader's memory is anonymous (memfd)"
    if not hasattr(os, "memfd_create"):
        reason = "not needed, because images are loaded in threads on this system"
    yield Finding("shared", f"{shared_memory} of {size}; {reason}")


def _paddle(facts: dict[str, Any]) -> Iterator[Finding]:
    version = facts["version"]
    libraries = [f"{name} {value}" for name, value in version.items() if value not in _NO_VERSION]
    yield Finding("Paddle", f"{facts['paddle']}, {', '.join(libraries) or 'a CPU build'}")
    for kind, library in (("gpu", "nccl"), ("xpu", "xpu_xccl")):
        count = sum(device["name"].startswith(f"{kind}:") for device in facts["devices"])
        # A build that can't report a version may have the library.
        if count > 1 and version.get(library, "unknown") in _NO_VERSION:
            yield Finding(
                "Paddle", f"{count} devices, and no {library} to train on them together", is_ok=False
            )


def _loader(facts: dict[str, Any]) -> Iterator[Finding]:
    device_count = max(1, sum(device["name"] != "cpu" for device in facts["devices"]))
    cores_per_rank = max(1, usable_cores() // device_count)
    text = f"{usable_cores()} usable cores for {device_count} processes, one per device"
    if device_count == 1:
        text = f"{usable_cores()} usable cores for one process"
    yield Finding("loader", f"{text}: loader.num_workers up to {cores_per_rank}")


def _gpu(device: dict[str, Any], facts: dict[str, Any]) -> Iterator[Finding]:
    """Yields the memory that training needs on an accelerator, and what is special about an NVIDIA GPU."""
    name = device["name"]
    if "model" not in device:
        if name != "cpu":
            yield Finding(name, _memory_text(None))
        return
    major, minor = device["capability"]
    if not device["has_kernels"]:
        names = ", ".join(f"{one}.{two}" for one, two in facts["architectures"])
        yield Finding(
            name,
            f"compute capability {major}.{minor}, but this Paddle's kernels are for {names}; "
            "see docs/installation.md",
        )
    if major >= _TF32_CAPABILITY:
        state = "on: float32 products have 10 bits" if facts["is_tf32_allowed"] else "off"
        yield Finding(name, f"TF32 is {state}")
    yield Finding(name, _memory_text(device["memory_bytes"]))


def _memory_text(memory_bytes: int | None) -> str:
    """Returns what the batches of the configs need, and if a device's memory is too small for them.

    Args:
        memory_bytes: memory of the device; None if Paddle does not know it.
    """
    gib = {name: mib * _BATCH_IMAGES / 1024 for name, mib in _MIB_PER_IMAGE.items()}
    needs = ", ".join(f"{name} {size:.0f}" for name, size in gib.items())
    text = f"float32 batches of {_BATCH_IMAGES} at 299 px need up to this many GiB (computed): {needs}"
    if memory_bytes is not None and max(gib.values()) > memory_bytes / _BYTES_PER_GIB:
        text += f"; this device has {memory_bytes / _BYTES_PER_GIB:.0f}: try ppxcls train --find-batch"
    return text


def _step(device: dict[str, Any]) -> Iterator[Finding]:
    name = device["name"]
    prefix = ""
    if "model" in device:
        prefix = f"{device['model']}, {device['memory_bytes'] >> 30} GiB: "
    facts, problem = _run(_STEP_SCRIPT, name)
    if facts is None:
        yield Finding(name, f"{prefix}a training step fails: {problem}", is_ok=False)
        return
    rate = (
        f"{facts['seconds']:.3f} s per step of Xception41, "
        f"8 images of 96 px; first step {facts['first']:.1f} s"
    )
    is_finite = facts["loss"] == facts["loss"] and abs(facts["loss"]) < 1e6
    yield Finding(name, f"{prefix}{rate}; loss {facts['loss']:.3f}", is_ok=is_finite)
    if name != "cpu":  # there, ppxcls computes in bfloat16 itself
        words = "has an effect" if facts["bfloat16"] else "has no effect, Paddle computes in float32"
        yield Finding(name, f"AMP in bfloat16 {words}")
