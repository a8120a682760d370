"""Trainings by ppxcls on the test device: resumed to the same bits, true averages, and no waits inside a step."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from typing import Any

import numpy as np

import ppxcls
from tests.accelerator.programs.counts import counted

AMP: dict[str, dict[str, Any] | None] = {
    "float32": None,
    "O1 float16": {"level": "O1", "scale_loss": 128.0, "use_dynamic_loss_scaling": True},
    "O1 bfloat16": {"level": "O1", "dtype": "bfloat16"},
    "O2 float16": {"level": "O2", "scale_loss": 128.0, "use_dynamic_loss_scaling": True},
    "O2 bfloat16": {"level": "O2", "dtype": "bfloat16"},
}


class Stop(Exception):
    """Interrupts a training."""


def build(config: str, mode: str, folder: str, *overrides: str) -> Any:
    keys = [f"Global.output_dir={folder}", *overrides]
    if AMP[mode]:
        keys.append(f"AMP={json.dumps(AMP[mode])}")
    return ppxcls.build_trainer(ppxcls.load_config(config, keys))


def state_of(trainer: Any) -> dict[str, Any]:
    """Returns weights, optimizer state and average as arrays, without the names of this process."""
    learner = trainer.learner
    state = {f"weight {key}": value for key, value in tensors(learner).items()}
    names = {p.name: key for key, p in learner.network.named_parameters()}
    for name, copy in learner.optimizer._master_weights.items():
        state[f"master {names[name]}"] = copy.numpy()
    for kind, accumulators in learner.optimizer._accumulators.items():
        for name, value in accumulators.items():
            state[f"{kind} {names[name.split('_fp32_master')[0]]}"] = value.numpy()
    for key, value in learner.average.state_dict().items():
        state[f"average {key}"] = value
    return state


def tensors(learner: Any) -> dict[str, Any]:
    """Returns the weights and statistics as float32 arrays, by state key."""
    state = learner.network.state_dict(use_hook=False)
    return {key: value.astype("float32").numpy() for key, value in state.items()}


def averaged_by_hand(trainer: Any) -> dict[str, Any]:
    """Makes a training also average its float32 weights one by one, and returns the averages."""
    learner = trainer.learner
    averages: dict[str, Any] = tensors(learner)
    update = learner.average.update

    def both(step: int) -> None:
        update(step)
        copies = learner.optimizer._master_weights
        for key, tensor in learner.network.state_dict(use_hook=False).items():
            source = copies.get(tensor.name, tensor).astype("float32").numpy()
            averages[key] = averages[key] * np.float32(0.5) + source * np.float32(0.5)

    learner.average.update = both
    return averages


def counts_of_steps(trainer: Any) -> list[dict[str, int]]:
    """Trains on the first epoch's batches, and returns the counts of the second and the third."""
    trainer.learner.model.train()
    trainer.progress.epoch = 2  # the first batch of a run is also written as a picture
    results = []
    for batch in list(trainer.loader.epoch(1))[:3]:
        with counted() as counts:
            trainer.train_on(batch)
        results.append(asdict(counts))
    trainer.close_loaders()
    return results[1:]


def distance_of_copies(learner: Any) -> float:
    """Returns the largest difference between a half-precision weight and its rounded float32 copy."""
    distances = [0.0]
    for parameter in learner.network.parameters():
        copy = learner.optimizer._master_weights.get(parameter.name)
        if copy is not None:
            rounded = copy.astype(parameter.dtype).astype("float32")
            distances.append(float((rounded - parameter.astype("float32")).abs().max()))
    return max(distances)


def run(mode: str, config: str, output: str) -> dict[str, Any]:
    whole = build(config, mode, f"{output}/whole")
    averages = averaged_by_hand(whole)
    whole.fit()
    error = max(
        float(np.abs(value - averages[key]).max())
        for key, value in whole.learner.average.state_dict().items()
    )
    first = build(config, mode, f"{output}/parts")
    train_on, batches = first.train_on, iter(range(4))

    def interrupted(batch: Any) -> Any:
        if next(batches, None) is None:
            raise Stop
        return train_on(batch)

    first.train_on = interrupted
    with contextlib.suppress(Stop):
        first.fit()
    second = build(config, mode, f"{output}/parts", "Global.checkpoints=auto")
    resumed_at = second.progress.step
    second.fit()
    expected, received = state_of(whole), state_of(second)
    assert expected.keys() == received.keys()
    differences = [key for key, value in expected.items() if not np.array_equal(value, received[key])]
    results = ppxcls.evaluate(ppxcls.load_config(f"{output}/whole/{whole.output_dir.name}"))
    rows = [json.loads(line) for line in (whole.output_dir / "metrics.jsonl").read_text().splitlines()]
    best = max((row for row in rows if row["kind"] == "eval"), key=lambda row: (row["top1"], -row["loss"]))
    third = build(config, mode, f"{output}/third", "EMA=null", "Global.eval_during_train=false")
    step_counts = counts_of_steps(third)
    fourth = build(config, mode, f"{output}/fourth", "Global.eval_during_train=false")
    average_kernels = counts_of_steps(fourth)[1]["kernels"] - step_counts[1]["kernels"]
    types = {str(p.dtype) for p in whole.learner.network.parameters()}
    return {
        "types": sorted(types),
        "resumed_at": resumed_at,
        "steps": [whole.progress.step, second.progress.step],
        "differences": differences[:9],
        "compared": sorted({key.split()[0] for key in expected}),
        "average_error": error,
        "evaluated": {"during": best, "after": results},
        "losses": [row["loss"] for row in rows if row["kind"] == "train"],
        "counts": step_counts,
        "average_kernels": average_kernels,
        "distance_of_copies": distance_of_copies(whole.learner),
        "loader_processes": third.loader.num_processes,
    }


def main() -> None:
    config, output, *modes = sys.argv[1:]
    results = {mode: run(mode, config, f"{output}/{mode.replace(' ', '_')}") for mode in modes}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
