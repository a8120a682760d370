"""Counts the operators that one training step dispatches, by part of the step.

    python scripts/benchmarks/operators.py [--network Xception41] [--against CHECKOUT]

The host dispatches operators one after another. If a step has many small ones, the host is slower than the
accelerator. The counts need no accelerator. Paddle's CPU build dispatches the same operators, because this
script switches off the paths that only a CPU takes. Only AMP has no effect on a CPU: its configurations need
``--device`` with a device of Paddle.

An operator is a kernel that Paddle launches, and Paddle's profiler records each. The backward pass is counted
as well. A fused operator, such as ``merged_momentum``, counts once, even if it is several kernels of the
device. Copies between the host and the device don't count. ``--operators`` prints the counts by name.
``--against`` prints the ratio to another checkout of this package, such as the previous release.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from precisions import amp, can_choose_depthwise  # scripts/benchmarks/precisions.py
from sample_images import write_images  # scripts/benchmarks/sample_images.py

ROOT = Path(__file__).resolve().parents[2]
Counts = dict[str, Counter[str]]  # by part and operator
Wrap = Callable[[str, Callable[..., Any]], Callable[..., Any]]

ADAMW = "{name: AdamW, clip_norm_global: 1.0, weight_decay: 0.05, lr: {name: Cosine, learning_rate: 0.001}}"
CONFIGURATIONS = {
    "Momentum": [],
    "Momentum, EMA": ["EMA={decay: 0.9999}"],
    "AdamW, clip_norm_global, EMA": ["EMA={decay: 0.9999}", f"Optimizer={ADAMW}"],
}
AMP_CONFIGURATIONS = {
    "Momentum, float16 O1": [amp("float16")],
    "Momentum, bfloat16 O1": [amp("bfloat16")],
    "Momentum, bfloat16 O1, depthwise32": [amp("bfloat16", has_float32_depthwise=True)],
    "Momentum, bfloat16 O2": [amp("bfloat16", "O2")],
}
PARTS = ["input", "forward", "loss", "backward", "optimizer", "clipping", "EMA", "scoring", "other"]

# Calls of a step by part: module, class, method. A class that a checkout lacks is left out, and its operators
# count for the part around it.
CALLS = {
    "input": [("ppxcls.data.device", "ModelInput", "__call__")],
    "loss": [("ppxcls.train.losses", "WeightedSum", "__call__")],
    "backward": [("paddle", "Tensor", "backward")],
    "optimizer": [
        *(("paddle.amp", "GradScaler", name) for name in ("scale", "unscale_", "step", "update")),
        *(("paddle.optimizer", "Optimizer", name) for name in ("step", "clear_grad")),
    ],
    "clipping": [
        *(("paddle.nn", f"ClipGradBy{name}", "__call__") for name in ("GlobalNorm", "Norm", "Value"))
    ],
    "EMA": [("ppxcls.train.ema", "WeightAverage", "update")],
    "scoring": [("ppxcls.train.metrics", "Scorer", "__call__")],
}
_PREFIX = "part of a step: "
_KERNEL_SUFFIXES = (" kernel launch", " compute")  # of the profiler's events in Paddle 3, and in 2.6
_OLD_KERNEL = (
    "compute"  # event inside an operator of Paddle's old interface, such as check_finite_and_unscale
)


def in_part(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function whose operators the profiler records under a part."""
    from paddle.profiler import RecordEvent

    @functools.wraps(function)
    def recorded(*arguments: Any, **keywords: Any) -> Any:
        with RecordEvent(f"{_PREFIX}{part}"):
            return function(*arguments, **keywords)

    return recorded


@contextlib.contextmanager
def parts_wrapped(network: Any, wrap: Wrap) -> Iterator[None]:
    """Wraps the calls that make up a training step inside this context.

    Args:
        network: network whose call is the part ``forward``.
        wrap: function of a part's name and a callable that returns the callable to use instead.
    """
    targets = [("forward", type(network), "__call__")]
    for part, calls in CALLS.items():
        for module, class_name, method in calls:
            owner = getattr(importlib.import_module(module), class_name, None)
            if hasattr(owner, method):
                targets.append((part, owner, method))
    with contextlib.ExitStack() as stack:
        for part, owner, method in targets:
            wrapped = wrap(part, getattr(owner, method))
            stack.enter_context(mock.patch.object(owner, method, wrapped))
        yield


def count_operators(step: Callable[[], object], network: Any) -> Counts:
    """Runs a step and returns the number of its operators, by part and name.

    Args:
        step: training step that has run before, so that nothing is set up in it.
        network: network that the step trains.
    """
    from paddle import profiler

    recorder = profiler.Profiler(
        targets=[profiler.ProfilerTarget.CPU],
        on_trace_ready=lambda _: None,  # otherwise a file is written
    )
    with parts_wrapped(network, in_part):
        recorder.start()
        step()
        recorder.stop()
    counts = {part: Counter[str]() for part in PARTS}
    for root in recorder.profiler_result.get_data().values():
        add_kernels(root, "other", counts)
    return counts


def add_kernels(event: Any, part: str, counts: Counts) -> None:
    """Adds the kernels inside an event of the profiler to the counts."""
    if event.name.startswith(_PREFIX):
        part = event.name.removeprefix(_PREFIX)
    for suffix in _KERNEL_SUFFIXES:
        if event.name.endswith(suffix):
            counts[part][event.name.removesuffix(suffix).rstrip("_")] += 1
    for child in event.children_node:
        if child.name == _OLD_KERNEL:
            counts[part][event.name] += 1
        add_kernels(child, part, counts)


def total(counts: Counts) -> int:
    return sum(sum(names.values()) for names in counts.values())


@contextlib.contextmanager
def accelerator_imitated() -> Iterator[None]:
    """Turns off what only a CPU does, so that Paddle's CPU build dispatches what an accelerator would."""
    import paddle

    from ppxcls.ops import cpu

    with contextlib.ExitStack() as stack:
        for name in ("are_plain", "applies_to"):
            stack.enter_context(mock.patch.object(cpu, name, return_value=False))
        stack.enter_context(mock.patch.object(paddle, "get_device", return_value="accelerator:0"))
        # Waits for copies are no operators, and a CPU has no events to wait for.
        stack.enter_context(mock.patch.object(paddle.device, "Event", mock.MagicMock))
        yield


def run_worker(root: Path, network: str, configuration: str, device: str) -> Counts:
    """Returns the counts of a step of the package in a checkout.

    Args:
        root: checkout of the package.
        network: name of a network.
        configuration: key of ``CONFIGURATIONS`` or ``AMP_CONFIGURATIONS``.
        device: device that runs the step. A CPU imitates an accelerator.
    """
    sys.path.insert(0, str(root))
    import ppxcls

    assert Path(ppxcls.__file__).is_relative_to(root)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 8)
        data = "DataLoader.Train"
        overrides = [
            *(f"Global.device={device}", f"Global.output_dir={folder}/output", "Global.epochs=1"),
            *("Global.eval_during_train=False", f"Arch.name={network}"),
            *(f"{data}.dataset.image_root={folder}", f"{data}.dataset.cls_label_path={folder}/list.txt"),
            *(f"{data}.sampler.batch_size=2", f"{data}.loader.num_workers=0"),
            f"{data}.dataset.transform_ops.RandCropImage.size=71",
            *(CONFIGURATIONS | AMP_CONFIGURATIONS)[configuration],
        ]
        config = ppxcls.load_config(root / "configs/Xception41.yaml", overrides)
        with accelerator_imitated() if device == "cpu" else contextlib.nullcontext():
            trainer = ppxcls.build_trainer(config)
            batches = list(trainer.loader.epoch(1))
            for batch in batches[:2]:
                trainer.train_on(batch)
            counts = count_operators(lambda: trainer.train_on(batches[2]), trainer.learner.network)
        trainer.run.folder.release()
    return counts


def worker_counts(root: Path, options: argparse.Namespace, configuration: str) -> Counts | str:
    """Returns the counts of ``run_worker`` in a separate process, or its error in one line."""
    words = ["--worker", configuration, "--network", options.network, "--device", options.device]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "counts.json"
        result = subprocess.run(  # noqa: S603  this script
            [sys.executable, __file__, *words, "--root", str(root), "--output", str(output)],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        if result.returncode:
            return (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1][:200]
        return {part: Counter(names) for part, names in json.loads(output.read_text()).items()}


def row(configuration: str, counts: Counts | str, base_counts: Counts | str | None) -> str:
    """Returns a line of the table.

    Args:
        configuration: first cell.
        counts: counts of this checkout, or an error.
        base_counts: counts of the checkout to compare with, or an error; None for no comparison.
    """
    if isinstance(counts, str):
        return f"| {configuration} | {counts} |"
    cells = [configuration, f"{total(counts):,}"]
    cells += [f"{sum(counts[part].values()):,}" for part in PARTS]
    if isinstance(base_counts, str):
        cells.append(base_counts)
    elif base_counts is not None:
        cells += [f"{total(base_counts):,}", f"{total(counts) / total(base_counts):.2f}"]
    return f"| {' | '.join(cells)} |"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="Xception41")
    parser.add_argument(
        "--device", default="cpu", help="cpu (default), which imitates an accelerator, or another"
    )
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of this package")
    parser.add_argument("--operators", action="store_true", help="prints the counts by operator as well")
    parser.add_argument(
        "--only",
        action="append",
        choices=[*CONFIGURATIONS, *AMP_CONFIGURATIONS],
        help="configuration to count, repeatable",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    for name in ("--worker", "--root", "--output"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def available_configurations(device: str) -> list[str]:
    """Returns the names of the configurations that this package can run on a device."""
    sys.path.insert(0, str(ROOT))
    names = list(CONFIGURATIONS)
    if device != "cpu":
        names += [name for name in AMP_CONFIGURATIONS if "depthwise32" not in name or can_choose_depthwise()]
    return names


def main() -> None:
    options = parse_arguments()
    if options.worker:
        counts = run_worker(Path(options.root).resolve(), options.network, options.worker, options.device)
        Path(options.output).write_text(json.dumps(counts))
        return
    titles = [options.network, "operators", *PARTS]
    if options.against:
        titles += [options.against.name, "ratio"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    counts_by_configuration: dict[str, Counts] = {}
    for configuration in options.only or available_configurations(options.device):
        row_counts = worker_counts(ROOT, options, configuration)
        base_counts = None
        if options.against:
            base_counts = worker_counts(options.against.resolve(), options, configuration)
        print(row(configuration, row_counts, base_counts), flush=True)
        if not isinstance(row_counts, str):
            counts_by_configuration[configuration] = row_counts
    for configuration, counts in counts_by_configuration.items() if options.operators else ():
        print(f"\n{configuration}")
        for part, names in counts.items():
            words = ", ".join(f"{number} {name}" for name, number in names.most_common())
            print(f"- {part}: {words or 'none'}")
    if options.json:
        options.json.write_text(json.dumps(counts_by_configuration, indent=1) + "\n")


if __name__ == "__main__":
    main()
