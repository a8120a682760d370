"""Training steps of Xception41 on the test device, and in float32 on the CPU."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
import paddle
from paddle import nn

import ppxcls
from tests.accelerator.programs.counts import counted

NAME = os.environ.get("ACCELERATOR_NAME", "iluvatar_gpu")
STEPS = 2
# Name of the run: level of AMP, type, optimizer, and whether it updates all parameters in one operator.
RUNS: dict[str, tuple[str, str, str, bool]] = {
    "float32": ("O0", "float32", "Momentum", False),
    "float32 multi_tensor": ("O0", "float32", "Momentum", True),
    "O1 float16": ("O1", "float16", "Momentum", False),
    "O1 bfloat16": ("O1", "bfloat16", "Momentum", False),
    "O2 float16": ("O2", "float16", "Momentum", False),
    "O2 bfloat16": ("O2", "bfloat16", "Momentum", False),
    "O2 float16 multi_tensor": ("O2", "float16", "Momentum", True),
    "O2 bfloat16 multi_tensor": ("O2", "bfloat16", "Momentum", True),
    "O2 float16 AdamW": ("O2", "float16", "AdamW", False),
    "O2 bfloat16 AdamW": ("O2", "bfloat16", "AdamW", False),
}


def optimizer_of(network: nn.Layer, name: str, *, is_multi_tensor: bool, has_master_weights: bool) -> Any:
    arguments = {
        "parameters": network.parameters(),
        "learning_rate": 0.01 if name == "Momentum" else 1e-4,
        "weight_decay": 1e-4,
        "multi_precision": has_master_weights,
    }
    if name == "Momentum":
        arguments["use_multi_tensor"] = is_multi_tensor
    return getattr(paddle.optimizer, name)(**arguments)


def largest_distance(network: nn.Layer, optimizer: Any) -> float:
    """Returns how far a parameter is from its rounded master weight."""
    distances = [0.0]
    for parameter in network.parameters():
        master = optimizer._master_weights.get(parameter.name)
        if master is not None:
            rounded = master.astype(parameter.dtype)
            distances.append(float((rounded.astype("float32") - parameter.astype("float32")).abs().max()))
    return max(distances)


def train(
    weights: dict[str, Any], *, level: str, dtype: str, optimizer_name: str, is_multi_tensor: bool
) -> Any:
    """Returns the losses of a few steps, and what the last step did."""
    network = ppxcls.build_model("Xception41", class_num=3)
    network.set_state_dict({name: paddle.to_tensor(value) for name, value in weights.items()})
    optimizer = optimizer_of(
        network, optimizer_name, is_multi_tensor=is_multi_tensor, has_master_weights=level == "O2"
    )
    if level == "O2":
        network, optimizer = paddle.amp.decorate(network, optimizer, level="O2", dtype=dtype)
    scaler = paddle.amp.GradScaler(enable=dtype == "float16", init_loss_scaling=1024.0)
    rng = np.random.default_rng(0)
    images = paddle.to_tensor(rng.standard_normal((2, 3, 71, 71)).astype("float32"))
    labels = paddle.to_tensor(np.array([0, 1]))
    amp = {"enable": level != "O0", "level": level if level != "O0" else "O1"}
    losses = []
    for _ in range(STEPS):
        with counted() as counts:
            with paddle.amp.auto_cast(**amp, dtype="float16" if dtype == "float32" else dtype):
                loss = nn.functional.cross_entropy(network(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.clear_grad()
        losses.append(float(loss.astype("float32")))
    return {
        "losses": losses,
        "counts": asdict(counts),
        "distance": largest_distance(network, optimizer),
        "masters": len(optimizer._master_weights),
        "types": sorted({str(p.dtype) for p in network.parameters()}),
    }


def plain_losses(device: str) -> list[float]:
    """Trains a network of Paddle's layers only, and returns the losses."""
    paddle.set_device("cpu")
    paddle.seed(0)
    network = paddle.vision.models.MobileNetV1(scale=0.25, num_classes=3)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    paddle.set_device(device)
    network = paddle.vision.models.MobileNetV1(scale=0.25, num_classes=3)
    network.set_state_dict({name: paddle.to_tensor(value) for name, value in weights.items()})
    optimizer = optimizer_of(network, "Momentum", is_multi_tensor=False, has_master_weights=False)
    rng = np.random.default_rng(0)
    images = paddle.to_tensor(rng.standard_normal((4, 3, 64, 64)).astype("float32"))
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(network(images), paddle.to_tensor([0, 1, 2, 0]))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    return losses


def main() -> None:
    plain = {"plain cpu": plain_losses("cpu"), "plain device": plain_losses(NAME)}
    paddle.set_device("cpu")
    paddle.seed(0)
    weights = {
        name: value.numpy()
        for name, value in ppxcls.build_model("Xception41", class_num=3).state_dict().items()
    }
    results: dict[str, Any] = {**plain}
    for name in sys.argv[1:]:
        paddle.set_device("cpu" if name == "cpu" else NAME)
        level, dtype, optimizer_name, is_multi_tensor = RUNS.get(name, RUNS["float32"])
        results[name] = train(
            weights,
            level=level,
            dtype=dtype,
            optimizer_name=optimizer_name,
            is_multi_tensor=is_multi_tensor,
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
