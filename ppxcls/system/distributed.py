"""Processes and devices."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

from ppxcls.system.rendezvous import JobError, wait_for_all_ranks


class DeviceError(ValueError):
    """The installed Paddle can't use this device here."""


def available_devices() -> list[str]:
    """Names of the kinds of device that the installed Paddle can use on this machine."""
    names = ["cpu"]
    if paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count():
        names.insert(0, "gpu")
    if paddle.is_compiled_with_xpu():
        names.insert(0, "xpu")
    custom = [str(name).split(":")[0] for name in paddle.device.get_all_custom_device_type() or []]
    return [*dict.fromkeys(custom), *names]


def start(
    device: str, deterministic: bool = False, timeout: float = 600.0, cudnn_search: bool = False
) -> None:
    """Select this process's device and, under ``paddle.distributed.launch``, join the other processes.

    Args:
        device: ``cpu``, ``gpu``, ``xpu`` or the name of a custom device; ``:number`` may follow.
        deterministic: use deterministic operators.
        timeout: seconds to wait for the other processes.
        cudnn_search: let cuDNN try its algorithms; deterministic operators exclude that.

    Raises:
        DeviceError: there is no such device here.
        JobError: the other processes can't be reached.
    """
    available = available_devices()
    if device.split(":", maxsplit=1)[0] not in available:
        build = f"Paddle {paddle.__version__}, {'a CPU build' if available == ['cpu'] else 'as installed'}"
        raise DeviceError(
            f"expected one of {', '.join(available)} ({build}), received {device!r}; "
            f"to run on {available[0]}: -o Global.device={available[0]}"
        )
    paddle.set_device(device)
    if deterministic and paddle.is_compiled_with_cuda():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
        paddle.set_flags({"FLAGS_cudnn_deterministic": True, "FLAGS_embedding_deterministic": 1})
    elif cudnn_search and paddle.is_compiled_with_cuda():
        paddle.set_flags(
            {"FLAGS_cudnn_exhaustive_search": True, "FLAGS_cudnn_batchnorm_spatial_persistent": True}
        )
    if dist.ParallelEnv().world_size > 1 and not dist.is_initialized():
        _join(timeout)


def _join(timeout: float) -> None:
    environment = dist.ParallelEnv()
    master = os.environ.get("PADDLE_MASTER", "")
    wait_for_all_ranks(master, environment.rank, environment.world_size, timeout)
    try:
        dist.init_parallel_env()
    except (RuntimeError, OSError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise JobError(
            f"can't join the other processes at {master}: {lines[-1] if lines else type(error).__name__}"
        ) from None


def determinism() -> str:
    """One line for the log: what is deterministic on this device."""
    kind = paddle.get_device().split(":")[0]
    if kind == "cpu":
        return "deterministic: on the CPU the same bits for the same number of threads (OMP_NUM_THREADS) and processes"
    if kind == "gpu":
        return (
            "deterministic: cuDNN's and cuBLAS's deterministic algorithms, slower; the same bits on the same kind and number of "
            "GPUs; the sums of NCCL are in its own order, which is the same for the same layout of the machines"
        )
    return (
        f"deterministic: the data and every random choice; what the operators of {kind} do is up to its maker"
    )


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size()


def sum_over_processes(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Sum of an array over all processes, float64. All processes call it."""
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


def share_first_statistics(model: paddle.nn.Layer) -> None:
    """Copy the first process's batch-norm statistics to all others.

    Until then each has those of its own batches.
    """
    if world_size() == 1:
        return
    tensors = [tensor for tensor in model.state_dict().values() if tensor.stop_gradient]
    if not tensors:
        return
    together = paddle.concat([tensor.reshape([-1]).astype("float32") for tensor in tensors])
    dist.broadcast(together, src=0)
    for tensor, values in zip(tensors, together.split([tensor.size for tensor in tensors]), strict=True):
        tensor.set_value(values.reshape(tensor.shape).astype(tensor.dtype))


def require_same(values: Mapping[str, str]) -> None:
    """Check that texts are the same on all processes. All processes call it.

    Args:
        values: texts by name; the name is for the error message.

    Raises:
        JobError: a text differs from the first process's; the message gives the ranks.
    """
    size = 8
    own = [hashlib.sha256(text.encode()).digest()[:size] for text in values.values()]
    table = np.zeros((world_size(), len(own), size))
    table[rank()] = [list(digest) for digest in own]
    table = sum_over_processes(table.reshape(-1)).reshape(table.shape)
    unequal = (table != table[0]).any(axis=-1)
    for i, name in enumerate(values):
        if unequal[:, i].any():
            ranks = ", ".join(map(str, np.flatnonzero(unequal[:, i])))
            raise JobError(f"the {name} of rank {ranks} differs from that of rank 0")


class Agreement:
    """Lets all processes see a flag in the same step, whichever process raised it.

    All processes call it equally often. A reduction makes the host wait for the device. So with several
    processes it is done about every two seconds, not in every call.
    """

    _SECONDS = 2.0

    def __init__(self) -> None:
        self._calls, self._every, self._since = 0, 1, time.monotonic()

    def __call__(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether any process raised it. In calls without a reduction all are False."""
        if world_size() == 1:
            return list(flags)
        self._calls += 1
        if self._calls < self._every:
            return [False] * len(flags)
        elapsed = time.monotonic() - self._since
        *raised, total = sum_over_processes(np.array([*flags, elapsed], np.float64))
        seconds_a_call = max(total / world_size() / self._calls, 1e-3)
        # Computed from reduced numbers, so it is equal on all processes.
        self._calls, self._every, self._since = (
            0,
            max(1, round(self._SECONDS / seconds_a_call)),
            time.monotonic(),
        )
        return [bool(flag > 0) for flag in raised]
