"""Processes and devices."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence

import numpy as np
import paddle
import paddle.distributed as dist

from ppxcls.system.arrays import Array
from ppxcls.system.rendezvous import JobError, wait_for_all_ranks


class DeviceError(ValueError):
    """The installed Paddle can't use this device on this machine."""


def available_devices() -> list[str]:
    """Returns the kinds of device that the installed Paddle can use on this machine."""
    names = ["cpu"]
    if paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count():
        names.insert(0, "gpu")
    if paddle.is_compiled_with_xpu():
        names.insert(0, "xpu")
    custom = [str(name).split(":")[0] for name in paddle.device.get_all_custom_device_type() or []]
    return [*dict.fromkeys(custom), *names]


def start(
    device: str, *, deterministic: bool = False, timeout: float = 600.0, cudnn_search: bool = False
) -> None:
    """Selects this process's device and, under ``paddle.distributed.launch``, joins the other processes.

    Args:
        device: ``cpu``, ``gpu``, ``xpu`` or the name of a custom device; ``:number`` may follow.
        deterministic: True to use deterministic operators.
        timeout: seconds to wait for the other processes.
        cudnn_search: True to let cuDNN try its algorithms; it has no effect with ``deterministic``.

    Raises:
        DeviceError: the device is not available.
        JobError: the other processes can't be reached.
    """
    device_kinds = available_devices()
    if device.split(":", maxsplit=1)[0] not in device_kinds:
        build_name = (
            f"Paddle {paddle.__version__}, {'a CPU build' if device_kinds == ['cpu'] else 'as installed'}"
        )
        raise DeviceError(
            f"expected one of {', '.join(device_kinds)} ({build_name}), received {device!r}; "
            f"to run on {device_kinds[0]}: -o Global.device={device_kinds[0]}"
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
    """Returns one line for the log, about the deterministic operations of this device."""
    kind = paddle.get_device().split(":")[0]
    if kind == "cpu":
        return (
            "deterministic: on the CPU, results are bit-identical for the same number of threads "
            "(OMP_NUM_THREADS) and processes"
        )
    if kind == "gpu":
        return (
            "deterministic: cuDNN and cuBLAS use their deterministic algorithms, which are slower; results "
            "are bit-identical on the same kind and number of GPUs; NCCL sums in its own order, which is "
            "the same for the same layout of the machines"
        )
    return f"deterministic: the data and every random choice; the operators of {kind} may not be"


def rank() -> int:
    """Returns the number of this process, from 0."""
    return dist.get_rank()


def world_size() -> int:
    """Returns the number of processes."""
    return dist.get_world_size()


def sum_over_processes(values: Array) -> Array:
    """Returns the sum of an array over all processes, float64. All processes must call it."""
    if world_size() == 1:
        return values.astype(np.float64)
    # Vendor chips may have no float64; counts stay exact in float32 up to 16.7 million.
    dtype = "float64" if paddle.get_device().split(":")[0] in ("cpu", "gpu") else "float32"
    tensor = paddle.to_tensor(values, dtype=dtype)
    dist.all_reduce(tensor)
    return tensor.numpy().astype(np.float64)


def barrier() -> None:
    """Waits for all processes."""
    if world_size() > 1:
        dist.barrier()


def share_first_statistics(model: paddle.nn.Layer) -> None:
    """Copies the first process's batch-norm statistics to all others.

    Before, each process has the statistics of its own batches.
    """
    if world_size() == 1:
        return
    # Without the hook that casts the weights of half precision, which would return copies.
    state = model.state_dict(use_hook=False)
    tensors = [tensor for tensor in state.values() if tensor.stop_gradient]
    if not tensors:
        return
    statistics = paddle.concat([tensor.reshape([-1]).astype("float32") for tensor in tensors])
    dist.broadcast(statistics, src=0)
    for tensor, values in zip(tensors, statistics.split([tensor.size for tensor in tensors]), strict=True):
        paddle.assign(values.reshape(tensor.shape).astype(tensor.dtype), tensor)


def require_same(values: Mapping[str, str]) -> None:
    """Checks that texts are the same on all processes. All processes must call it.

    Args:
        values: texts by name. The name is for the error message.

    Raises:
        JobError: a text differs from the first process's. The message gives the ranks.
    """
    digest_bytes = 8
    digests = [hashlib.sha256(text.encode()).digest()[:digest_bytes] for text in values.values()]
    table = np.zeros((world_size(), len(digests), digest_bytes))
    table[rank()] = [list(digest) for digest in digests]
    table = sum_over_processes(table.reshape(-1)).reshape(table.shape)
    differences = (table != table[0]).any(axis=-1)
    for i, name in enumerate(values):
        if differences[:, i].any():
            ranks = ", ".join(map(str, np.flatnonzero(differences[:, i])))
            raise JobError(f"the {name} of rank {ranks} differs from that of rank 0")


class Agreement:
    """Shows a flag to all processes in the same step, whichever process raised it.

    All processes must call it equally often. A reduction makes the host wait for the device. So with several
    processes there is one about every two seconds, not in every call.
    """

    _INTERVAL_SECONDS = 2.0

    def __init__(self) -> None:
        self._call_count = 0
        self._interval_calls = 1
        self._start_time = time.monotonic()

    def __call__(self, flags: Sequence[bool]) -> list[bool]:
        """Returns for each flag if any process raised it. In calls without a reduction all are False."""
        if world_size() == 1:
            return list(flags)
        self._call_count += 1
        if self._call_count < self._interval_calls:
            return [False] * len(flags)
        elapsed_seconds = time.monotonic() - self._start_time
        *flag_sums, total_seconds = sum_over_processes(np.array([*flags, elapsed_seconds], np.float64))
        seconds_a_call = max(total_seconds / world_size() / self._call_count, 1e-3)
        # The interval depends on reduced numbers only, so it is equal on all processes.
        self._call_count = 0
        self._interval_calls = max(1, round(self._INTERVAL_SECONDS / seconds_a_call))
        self._start_time = time.monotonic()
        return [bool(flag > 0) for flag in flag_sums]
