"""Devices: the kinds that this Paddle can use, the one of this process, and its kernels."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import paddle

from ppxcls.system.environment import launched_rank
from ppxcls.system.errors import UserError
from ppxcls.system.logs import logger

# paddlepaddle-gpu 2.6.2 of the package index. Paddle 2 can't list the architectures of its kernels.
_PADDLE_2_ARCHITECTURES = ((6, 1), (7, 0), (7, 5), (8, 0), (8, 6))
_MEMORY_WORDS = ("memory", "resourceexhausted", "alloc_failed", "memoryallocation")
_MEMORY_ACCESS_WORDS = ("illegal memory access", "memory access fault", "illegal address")  # other faults
_MISSING_KERNEL_WORDS = ("no kernel image", "cuda error(209)", "invalid device function")


class DeviceError(UserError, ValueError):
    """The installed Paddle can't use a device on this machine.

    Args:
        message: description of the problem, in one line.
        setting: key of ``Global`` that must change.
    """

    def __init__(self, message: str, setting: str = "device") -> None:
        super().__init__(message)
        self.setting = setting


def available_devices() -> list[str]:
    """Returns the kinds of device that the installed Paddle can use on this machine."""
    names = ["cpu"]
    if paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count():
        names.insert(0, "gpu")
    if paddle.is_compiled_with_xpu():
        names.insert(0, "xpu")
    custom = [str(name).split(":")[0] for name in paddle.device.get_all_custom_device_type() or []]
    return [*dict.fromkeys(custom), *names]


def device_count(kind: str) -> int:
    """Returns the number of devices of an available kind that this process can see."""
    if kind == "cpu":
        return 1
    if kind == "gpu":
        return int(paddle.device.cuda.device_count())
    if kind == "xpu":
        return int(paddle.base.core.get_xpu_device_count())
    return int(paddle.base.core.get_custom_device_count(kind))


def process_device(device: str, world_size: int) -> str:
    """Checks a device name, and returns the name for ``paddle.set_device``.

    One of several processes uses the device that the launcher chose for it, whatever the number in the name.
    Without a number, Paddle takes it from ``FLAGS_selected_gpus`` or the variable of another kind.

    Args:
        device: kind of device; ``:number`` may follow.
        world_size: number of processes.

    Raises:
        DeviceError: there is no such device.
    """
    kind, colon, number = device.partition(":")
    kinds = available_devices()
    if kind not in kinds:
        build_name = f"Paddle {paddle.__version__}, {'a CPU build' if kinds == ['cpu'] else 'as installed'}"
        raise DeviceError(
            f"expected one of {', '.join(kinds)} ({build_name}), received {device!r}; "
            f"to run on {kinds[0]}: -o Global.device={kinds[0]}"
        )
    if not colon:
        return kind
    is_number = number.isascii() and number.isdecimal()
    if is_number and world_size > 1 and kind != "cpu":
        if launched_rank() == 0:
            logger.warning(
                f"the number of Global.device={device} has no effect: "
                f"each of the {world_size} processes uses the device that the launcher chose for it"
            )
        return kind
    count = device_count(kind)
    if kind == "cpu" or not is_number or int(number) >= count:
        last = "" if count <= 1 else f" to {kind}:{count - 1}"
        allowed = kind if kind == "cpu" else f"{kind}, or {kind}:0{last}"
        raise DeviceError(f"expected {allowed}, received {device!r}")
    return f"{kind}:{int(number)}"


def forbid_search_by_environment() -> None:
    """Checks that no variable turns on cuDNN's search, which Paddle refuses with deterministic operators.

    Raises:
        DeviceError: a variable does.
    """
    name = "FLAGS_cudnn_exhaustive_search"
    if os.environ.get(name, "").lower() in ("1", "t", "true", "y", "yes"):
        raise DeviceError(
            f"expected false, or the environment variable {name} to be unset; it is {os.environ[name]}",
            setting="deterministic",
        )


def run_one_operator(device: str) -> None:
    """Runs one operator on the current device, so that a device that can't compute is reported at the start.

    Args:
        device: name of the current device, for the message.

    Raises:
        DeviceError: the operator fails.
    """
    try:
        (paddle.ones([1]) + paddle.ones([1])).numpy()  # waits for the device
    except (RuntimeError, OSError, SystemError) as error:
        if any(words in str(error).lower() for words in _MISSING_KERNEL_WORDS):
            raise DeviceError(missing_kernels_message(device)) from None
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise DeviceError(f"{device} can't compute: {reason[:300]}") from None


def missing_kernels_message(device: str) -> str:
    """Returns the message for a GPU for which this Paddle has no kernels.

    Args:
        device: name of the GPU, such as ``gpu:0``.
    """
    number = int(device.partition(":")[2] or 0)
    name = paddle.device.cuda.get_device_name(number)
    major, minor = paddle.device.cuda.get_device_capability(number)
    return (
        f"this Paddle has no kernels for {name} ({major}.{minor}); "
        "install a build for CUDA 12 or newer (docs/installation.md)"
    )


def kernel_architectures() -> list[tuple[int, int]]:
    """Returns the compute capabilities that this Paddle's kernels are compiled for; empty if unknown."""
    if not hasattr(paddle.version, "cuda_archs"):
        is_known_wheel = str(paddle.version.cuda()).startswith("11.")
        return list(_PADDLE_2_ARCHITECTURES) if is_known_wheel else []
    numbers = [int(digits) for digits in re.findall(r"\d+", str(paddle.version.cuda_archs()))]
    return [divmod(number, 10) for number in sorted(set(numbers))]


def has_kernels(capability: tuple[int, int], architectures: Sequence[tuple[int, int]]) -> bool:
    """True if one of the architectures runs on a GPU.

    A GPU runs the kernels of its own major version, up to its own minor version.

    Args:
        capability: compute capability of the GPU, such as (8, 9).
        architectures: compute capabilities of the kernels.
    """
    return any(major == capability[0] and minor <= capability[1] for major, minor in architectures)


def is_out_of_memory(error: BaseException) -> bool:
    """True if an operator failed because the memory of its device is full.

    Versions of Paddle and libraries differ in the class of this error. CUDA, cuDNN and cuBLAS report it as
    OSError without a number.
    """
    if isinstance(error, MemoryError):
        return True
    is_number_set = isinstance(error, OSError) and error.errno is not None
    if is_number_set or not isinstance(error, RuntimeError | SystemError | OSError):
        return False
    text = str(error).lower()
    is_about_memory = any(words in text for words in _MEMORY_WORDS)
    return is_about_memory and not any(words in text for words in _MEMORY_ACCESS_WORDS)
