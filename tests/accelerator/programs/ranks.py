"""Collectives of two processes on the test device. Each process writes its results to a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import paddle
import paddle.distributed as dist
from paddle import nn


def sums(rank: int) -> dict[str, Any]:
    results = {}
    for dtype in ("float32", "float16", "bfloat16", "int64", "int32"):
        tensor = paddle.to_tensor([1.0, 2.5]).astype(dtype) * (rank + 1)
        dist.all_reduce(tensor)
        results[dtype] = tensor.astype("float32").tolist()
    return results


def reduced(rank: int, operation: Any) -> list[float]:
    tensor = paddle.to_tensor([1.0, -2.0]) * (rank + 1)
    dist.all_reduce(tensor, op=operation)
    return tensor.tolist()


def other_collectives(rank: int) -> dict[str, Any]:
    broadcast = paddle.to_tensor([float(rank)])
    dist.broadcast(broadcast, 1)
    gathered: list[paddle.Tensor] = []
    dist.all_gather(gathered, paddle.to_tensor([rank]))
    objects: list[Any] = []
    dist.all_gather_object(objects, {"rank": rank})
    part = paddle.zeros([1])
    dist.reduce_scatter(part, [paddle.to_tensor([1.0]), paddle.to_tensor([5.0])])
    message = paddle.to_tensor([7.0 if rank == 0 else 0.0])
    if rank == 0:
        dist.send(message, 1)
    else:
        dist.recv(message, 0)
    dist.barrier()
    return {
        "broadcast": broadcast.tolist(),
        "gathered": [tensor.item() for tensor in gathered],
        "objects": objects,
        "part": part.tolist(),
        "message": message.tolist(),
    }


def trained_weights(rank: int) -> list[float]:
    """Trains under DataParallel on data of the rank's own, and returns the weights."""
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    parallel = paddle.DataParallel(network)
    optimizer = paddle.optimizer.Momentum(parameters=network.parameters(), learning_rate=0.1)
    for step in range(3):
        inputs = paddle.ones([2, 3]) * (rank + 1 + step)
        parallel(inputs).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    return paddle.concat([weight.flatten() for weight in network.parameters()]).tolist()


def main() -> None:
    dist.init_parallel_env()
    rank = dist.get_rank()
    paddle.seed(rank)  # DataParallel gives rank 0's weights to the others
    results = {
        "device": paddle.get_device(),
        "sums": sums(rank),
        "max": reduced(rank, dist.ReduceOp.MAX),
        "min": reduced(rank, dist.ReduceOp.MIN),
        **other_collectives(rank),
        "weights": trained_weights(rank),
    }
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
