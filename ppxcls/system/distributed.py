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
from ppxcls.system.devices import forbid_search_by_environment, process_device, run_one_operator
from ppxcls.system.job_secret import JobError
from ppxcls.system.rendezvous import wait_for_all_ranks
from ppxcls.system.variables import job_problem


def start(
    device: str,
    *,
    deterministic: bool = False,
    timeout: float = 600.0,
    cudnn_search: bool = False,
    float16_channels_last: bool = False,
) -> None:
    """Selects this process's device and, under ``paddle.distributed.launch``, joins the other processes.

    Args:
        device: ``cpu``, ``gpu``, ``xpu`` or the name of a custom device; ``:number`` may follow, which has an
            effect for a single process.
        deterministic: True to use deterministic operators.
        timeout: seconds to wait for the other processes.
        cudnn_search: True to let cuDNN try its algorithms; it has no effect with ``deterministic``.
        float16_channels_last: True if the network computes on [N, H, W, C] in float16. Only then does cuDNN
            normalise in this layout, with a flag that is not exact enough for [N, C, H, W].

    Raises:
        DeviceError: the device is not available or can't compute, or the environment contradicts a setting.
        JobError: the other processes can't be reached, or the variables of the job are incomplete.
    """
    if (problem := job_problem(os.environ)) is not None:
        raise JobError(problem)
    environment = dist.ParallelEnv()
    device = process_device(device, environment.world_size)
    is_gpu = device.split(":", maxsplit=1)[0] == "gpu"
    if is_gpu and deterministic:
        forbid_search_by_environment()
        # cuBLAS reads it when its handle is made, which selecting the device may do.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    paddle.set_device(device)
    if is_gpu:
        paddle.set_flags(
            _gpu_flags(
                deterministic=deterministic,
                cudnn_search=cudnn_search,
                float16_channels_last=float16_channels_last,
            )
        )
        run_one_operator(paddle.get_device())
    if environment.world_size > 1 and not dist.is_initialized():
        _join(timeout)


def _gpu_flags(
    *, deterministic: bool, cudnn_search: bool, float16_channels_last: bool
) -> dict[str, bool | int]:
    # Set to False too, because an earlier run of this process may have set it.
    flags: dict[str, bool | int] = {"FLAGS_cudnn_batchnorm_spatial_persistent": float16_channels_last}
    if deterministic:
        flags |= {"FLAGS_cudnn_exhaustive_search": False, "FLAGS_cudnn_deterministic": True}
        flags["FLAGS_embedding_deterministic"] = 1
    elif cudnn_search:
        flags["FLAGS_cudnn_exhaustive_search"] = True
    return flags


def _join(timeout: float) -> None:
    environment = dist.ParallelEnv()
    # Paddle meets at the first endpoint too if there is no other place.
    master = os.environ.get("PADDLE_MASTER") or environment.trainer_endpoints[0]
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
            "deterministic: cuDNN and cuBLAS use their deterministic algorithms, which are slower; by "
            "Paddle's source, results are bit-identical on the same model and number of GPUs, with the same "
            "versions of Paddle, CUDA and cuDNN; NCCL sums in an order that depends on the layout of the "
            "machines"
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


def values_of_first_process(values: Array) -> Array:
    """Returns the first process's array, float64, on all processes. All processes must call it."""
    return sum_over_processes(values if rank() == 0 else np.zeros_like(values))


def gathered_rows(rows: Array) -> Array:
    """Returns the rows of all processes in the order of the ranks, float64. All processes must call it.

    Args:
        rows: rows of this process, [n] or [n, columns]; each process may have another number of rows.
    """
    if world_size() == 1:
        return rows.astype(np.float64)
    counts = np.zeros(world_size())
    counts[rank()] = len(rows)
    counts = sum_over_processes(counts)
    start, total = round(counts[: rank()].sum()), round(counts.sum())
    table = np.zeros((total, *rows.shape[1:]))
    if not table.size:
        return table
    table[start : start + len(rows)] = rows
    return sum_over_processes(table.reshape(-1)).reshape(table.shape)


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
