"""Processes and devices; imports nothing of the package."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist


class DeviceError(ValueError):
    """The device asked for is not one that the installed Paddle can use here."""


def available_devices() -> list[str]:
    """Names of the kinds of device that the installed Paddle can use on this machine."""
    names = ["cpu"]
    if paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count():
        names.insert(0, "gpu")
    if paddle.is_compiled_with_xpu():
        names.insert(0, "xpu")
    custom = [str(name).split(":")[0] for name in paddle.device.get_all_custom_device_type() or []]
    return [*dict.fromkeys(custom), *names]


def start(device: str) -> None:
    """Select this process's device and, under ``paddle.distributed.launch``, join the other processes.

    Args:
        device: ``cpu``, ``gpu``, ``xpu`` or a custom device's name, with ``:number`` or without.

    Raises:
        DeviceError: there is no such device here.
    """
    available = available_devices()
    if device.split(":", maxsplit=1)[0] not in available:
        build = f"Paddle {paddle.__version__}, {'a CPU build' if available == ['cpu'] else 'as installed'}"
        raise DeviceError(
            f"expected one of {', '.join(available)} ({build}), received {device!r}; "
            f"to run on {available[0]}: -o Global.device={available[0]}"
        )
    paddle.set_device(device)
    if dist.ParallelEnv().world_size > 1 and not dist.is_initialized():
        dist.init_parallel_env()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size()


def sum_over_processes(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Sum of an array over all processes, float64; the array itself where there is one process."""
    if world_size() == 1:
        return values.astype(np.float64)
    # Vendor chips may have no float64; counts stay exact in float32 up to 16.7 million.
    dtype = "float64" if paddle.get_device().split(":")[0] in ("cpu", "gpu") else "float32"
    tensor = paddle.to_tensor(values, dtype=dtype)
    dist.all_reduce(tensor)
    return tensor.numpy().astype(np.float64)


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()
