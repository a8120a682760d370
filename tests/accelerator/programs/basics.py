"""Memory, copies, counts and random numbers of the test device."""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import asdict
from typing import Any

import numpy as np
import paddle

from tests.accelerator.programs.counts import counted, set_delay

NAME = os.environ.get("ACCELERATOR_NAME", "iluvatar_gpu")


def error_of(action: Any) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def freed_memory() -> list[int]:
    """Returns some bytes that are left of a tensor. Those at its start are in use by the system's allocator."""
    tensor = paddle.ones([1000])
    address = tensor.data_ptr()
    del tensor
    return sorted(set(ctypes.string_at(address + 2000, 16)))


def counts_of_operations() -> dict[str, Any]:
    results = {}
    with counted() as counts:
        tensor = paddle.to_tensor(np.ones((4, 4), np.float32))
    results["to_tensor"] = asdict(counts)
    with counted() as counts:
        total = (tensor @ tensor + 1).t() * 2 - tensor[1:2]
    results["operators"] = asdict(counts)
    with counted() as counts:
        value = total.numpy()
    results["numpy"] = asdict(counts)
    with counted() as counts:
        paddle.device.synchronize()
    results["synchronize"] = asdict(counts)
    return {**results, "value": value.tolist()}


def late_copy(*, waits: bool) -> dict[str, Any]:
    """Returns what a queued copy brings if its source is overwritten, after a wait or without one."""
    source = paddle.to_tensor(np.ones(1000, np.float32), place=paddle.CPUPlace())
    with counted() as counts:
        copy = source._copy_to(paddle.CustomPlace(NAME, 0), False)
        if waits:
            paddle.device.synchronize()
        ctypes.memset(source.data_ptr(), 0, 4000)
    return {"counts": asdict(counts), "values": sorted(set(copy.numpy().tolist()))}


def source_after_kernels(*, changes: bool) -> dict[str, int]:
    """Returns the counts if the source of a queued copy is overwritten after kernels have used the copy."""
    source = paddle.to_tensor(np.ones(1000, np.float32), place=paddle.CPUPlace())
    with counted() as counts:
        copy = source._copy_to(paddle.CustomPlace(NAME, 0), False)
        total = copy.sum()
        if changes:
            ctypes.memset(source.data_ptr(), 0, 4000)
        paddle.device.synchronize()
    assert total.item() == 1000
    return asdict(counts)


def copy_to_host() -> dict[str, Any]:
    """Returns what a queued copy to the host brings before a wait and after it."""
    source = paddle.ones([1000])
    target = paddle.to_tensor(np.zeros(1000, np.float32), place=paddle.CPUPlace())
    values = []
    with counted() as counts:
        target.copy_(source, False)
        values.append(sorted(set(target.tolist())))
        paddle.device.synchronize()
    values.append(sorted(set(target.tolist())))
    return {"counts": asdict(counts), "values": values}


def random_numbers() -> list[list[float]]:
    draws = []
    for _ in range(2):
        paddle.seed(7)
        values = [paddle.uniform([4]), paddle.randn([4]), paddle.randperm(4).astype("float32")]
        values.append(paddle.nn.functional.dropout(paddle.ones([4]), 0.5))
        draws.append(paddle.concat(values).tolist())
    return draws


def bfloat16_product() -> str:
    """Returns the type of a matrix product under bfloat16 AMP."""
    with paddle.amp.auto_cast(dtype="bfloat16"):
        return str((paddle.ones([2, 2]) @ paddle.ones([2, 2])).dtype)


def main() -> None:
    paddle.set_device(NAME)
    limit = int(os.environ["ACCELERATOR_MEMORY_MB"]) << 20
    results: dict[str, Any] = {
        "devices": paddle.device.get_available_custom_device(),
        "wrong_device": error_of(lambda: paddle.to_tensor([1.0], place=paddle.CustomPlace(NAME, 9))),
        "empty": np.unique(paddle.empty([1000], "uint8").numpy()).tolist(),
        "freed": freed_memory(),
        "counts": counts_of_operations(),
        "random": random_numbers(),
        "out_of_memory": error_of(lambda: paddle.zeros([limit // 4 + 1])),
        "after_out_of_memory": paddle.ones([3]).sum().item(),
        "bfloat16_product": bfloat16_product(),
    }
    set_delay(100_000)
    results["late_copy"] = late_copy(waits=False)
    results["awaited_copy"] = late_copy(waits=True)
    results["changed_source"] = source_after_kernels(changes=True)
    results["unchanged_source"] = source_after_kernels(changes=False)
    results["copy_to_host"] = copy_to_host()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
