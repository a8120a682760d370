"""Measures a training step on your devices, by network, precision and number of cards.

    python scripts/benchmarks/gpu.py --device gpu --cards 1,2,4,8 --json gpu.json
    # a test of this script on the CPU:
    python scripts/benchmarks/gpu.py --device cpu --cards 1,2 --size 71 --batch 2 --steps 2 --files 8

Prints images/s and the time of each part of a step. Each row is measured in separate processes, under
Paddle's launcher if there are several cards. A row has the rate of the whole step with images on the
device, the rate with the loader reading JPEGs, and the times of the parts of a step, with a synchronisation
after each part. The all-reduce time is the backward pass with all-reduce minus the backward pass without
it. ``--profile DIR`` writes a trace for chrome://tracing or ui.perfetto.dev.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

PRECISIONS = {
    "float32": [],
    "float32-nhwc": ["Arch.data_format=NHWC"],
    "float16": ["AMP={scale_loss: 128.0, use_dynamic_loss_scaling: true, level: O1}"],
    "float16-nhwc": [
        "AMP={scale_loss: 128.0, use_dynamic_loss_scaling: true, level: O1}",
        "Arch.data_format=NHWC",
    ],
    "bfloat16-O2-nhwc": ["AMP={dtype: bfloat16, level: O2}", "Arch.data_format=NHWC"],
    "float16-nhwc-static": [
        *("AMP={scale_loss: 128.0, use_dynamic_loss_scaling: true, level: O1}", "Arch.data_format=NHWC"),
        *("Global.to_static=True", "Global.cudnn_search=True"),
    ],
}
# Dense peaks in TFLOP/s from the manufacturers' data sheets: float32, and half precision on tensor cores.
PEAK_TFLOPS = {
    "BI-V100": (37, 147),  # before V100, because the first name contained in the device's name is used
    "V100": (15.7, 125),
    "A100": (19.5, 312),
    "3090": (35.6, 142),
    "4090": (82.6, 330),
    "H100": (67, 990),
}


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker:
        run_worker(arguments)
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder), arguments.files)
        for network in arguments.networks.split(","):
            for precision in arguments.precisions.split(","):
                for cards in map(int, arguments.cards.split(",")):
                    rows.append(measure_row(arguments, network, precision, cards, data))
                    print_row(rows[-1], rows)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="gpu")
    parser.add_argument("--cards", default="1", help="numbers of cards to measure, such as 1,2,4,8")
    parser.add_argument("--networks", default="Xception41")
    parser.add_argument(
        "--precisions", default="float32,float16-nhwc", help=f"some of {', '.join(PRECISIONS)}"
    )
    parser.add_argument("--batch", type=int, default=64, help="images per card")
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument(
        "--files", type=int, default=512, help="number of JPEGs for the loader, 500 x 375 pixels"
    )
    parser.add_argument("--workers", type=int, default=8, help="loader threads per card")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--profile", metavar="DIR")
    for name in ("--worker", "--network", "--precision", "--data"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_data(folder: Path, count: int) -> Path:
    """Writes JPEGs with a texture similar to photographs, and their list."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    lines = []
    for i in range(count):
        noise = rng.integers(0, 256, (47, 63, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i}.jpg"), cv2.resize(noise, (500, 375), interpolation=cv2.INTER_CUBIC))
        lines.append(f"{i}.jpg {i % 1000}\n")
    (folder / "list.txt").write_text("".join(lines))
    return folder


def measure_row(
    arguments: argparse.Namespace, network: str, precision: str, cards: int, data: Path
) -> dict[str, Any]:
    """Returns one row, measured by workers in separate processes."""
    output = data / "result.json"
    output.unlink(missing_ok=True)
    numbers = {
        name: str(getattr(arguments, name)) for name in ("device", "batch", "size", "steps", "workers")
    }
    options = {
        "worker": str(output),
        "network": network,
        "precision": precision,
        "data": str(data),
        **numbers,
    }
    if arguments.profile and cards == 1:
        options["profile"] = str(Path(arguments.profile).resolve() / f"{network}-{precision}")
    launch = (
        ["-m", "paddle.distributed.launch", "--nproc_per_node", str(cards), "--log_dir", str(data / "log")]
        if cards > 1
        else []
    )
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    result = subprocess.run(  # noqa: S603  this script
        [sys.executable, *launch, __file__, *words], check=False, capture_output=True, text=True, cwd=data
    )
    row_key = {"network": network, "precision": precision, "cards": cards}
    if result.returncode or not output.exists():
        lines = (result.stderr or result.stdout).strip().splitlines()
        return {**row_key, "error": lines[-1][:200] if lines else f"exit code {result.returncode}"}
    return {**row_key, **json.loads(output.read_text())}


def print_row(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Prints a row as a line of a Markdown table."""
    if len(rows) == 1:
        titles = [
            "network",
            "precision",
            "cards",
            "images/s",
            "of one card",
            "with the loader",
            "share of the peak",
        ]
        titles += ["input ms", "forward", "backward", "all-reduce", "optimizer"]
        print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    if "error" in row:
        print(f"| {row['network']} | {row['precision']} | {row['cards']} | {row['error']} |", flush=True)
        return
    single_card_row = next(
        (
            r
            for r in rows
            if (r["network"], r["precision"], r["cards"]) == (row["network"], row["precision"], 1)
        ),
        None,
    )
    scaling = (
        f"{row['ips'] / single_card_row['ips']:.2f}x" if single_card_row and "ips" in single_card_row else "-"
    )
    share = f"{row['share_of_peak']:.0%}" if row["share_of_peak"] else "-"
    part_cells = [
        f"{1000 * row['parts'][name]:.1f}"
        for name in ("input", "forward", "backward", "all-reduce", "optimizer")
    ]
    cells = [
        row["network"],
        row["precision"],
        str(row["cards"]),
        f"{row['ips']:.4g}",
        scaling,
        f"{row['ips_loader']:.4g}",
        share,
        *part_cells,
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def run_worker(arguments: argparse.Namespace) -> None:
    """Measures in this process, one of several. Rank 0 writes the result."""
    import numpy as np

    import ppxcls

    dataset = {"image_root": arguments.data, "cls_label_path": f"{arguments.data}/list.txt"}
    overrides = [
        f"Arch.name={arguments.network}",
        f"Global.device={arguments.device}",
        "Global.epochs=1",
        "Global.eval_during_train=False",
    ]
    overrides += [
        f"Global.output_dir={arguments.data}/output",
        "Global.save_interval=9",
        *PRECISIONS[arguments.precision],
    ]
    overrides += [f"DataLoader.Train.dataset.{key}={value}" for key, value in dataset.items()]
    overrides += [
        f"DataLoader.Train.sampler.batch_size={arguments.batch}",
        f"DataLoader.Train.loader.num_workers={arguments.workers}",
    ]
    overrides += [f"DataLoader.Train.dataset.transform_ops.RandCropImage.size={arguments.size}"]
    trainer = ppxcls.build_trainer(ppxcls.load_config(ROOT / "configs/Xception41.yaml", overrides))
    import paddle
    import paddle.distributed as dist

    learner, world_size = trainer.learner, dist.get_world_size()
    rng = np.random.default_rng(0)
    images = paddle.to_tensor(
        rng.normal(0, 1, (arguments.batch, 3, arguments.size, arguments.size)).astype(np.float32)
    )
    labels = paddle.to_tensor(rng.integers(0, 1000, arguments.batch))

    def step() -> float:
        return float(learner.step(images, labels, 1.0, is_update_step=True)[0])

    with profile_block(arguments.profile):
        for _ in range(3):
            step()
    seconds = statistics.median(call_seconds(step) for _ in range(arguments.steps))
    first_batch = next(iter(trainer.loader.epoch(1)))
    result = {
        "ips": arguments.batch * world_size / seconds,
        "ips_loader": loader_rate(trainer, arguments.steps, world_size),
        "parts": parts(learner, images, labels, trainer._to_input, first_batch.images, arguments.steps),
        "share_of_peak": share_of_peak(arguments, seconds),
        "paddle": paddle.__version__,
        "device": device_name(arguments.device),
        **{name: getattr(arguments, name) for name in ("batch", "size", "steps", "workers")},
    }
    if dist.get_rank() == 0:
        Path(arguments.worker).write_text(json.dumps(result))
    trainer.run.folder.release()


def call_seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def synchronize() -> None:
    """Waits for the device. On a CPU there is nothing to wait for."""
    import paddle

    if paddle.get_device() != "cpu":
        paddle.device.synchronize()


@contextlib.contextmanager
def profile_block(folder: str | None) -> Any:
    """Writes a trace of the block if a folder is given."""
    if not folder:
        yield
        return
    from paddle import profiler

    with profiler.Profiler(on_trace_ready=profiler.export_chrome_tracing(folder)):
        yield


def loader_rate(trainer: Any, steps: int, world_size: int) -> float:
    """Returns the images/s of the training loop with JPEGs that are read, decoded and augmented."""
    count, epoch = 0, 1
    start = None
    while count < steps:
        for batch in trainer.loader.epoch(epoch):
            trainer.train_on(batch)
            if start is None:  # not timed, because the first batch waits for the loader's threads to start
                synchronize()
                start = time.perf_counter()
                continue
            count += 1
            if count == steps:
                break
        epoch += 1
    synchronize()
    assert start is not None
    return trainer.loader.sampler.batch_size * world_size * steps / (time.perf_counter() - start)


def parts(
    learner: Any, images: Any, labels: Any, to_input: Any, host_images: Any, steps: int
) -> dict[str, float]:
    """Returns the median seconds of the parts of a step.

    The device is synchronised before and after each part, so the sum is larger than the time of a whole step.
    """
    import paddle

    is_parallel = isinstance(learner.model, paddle.DataParallel)
    seconds: dict[str, list[float]] = {
        "input": [],
        "forward": [],
        "backward": [],
        "local": [],
        "optimizer": [],
    }

    def time_part(name: str, call: Callable[[], Any]) -> Any:
        synchronize()
        start = time.perf_counter()
        result = call()
        synchronize()
        seconds[name].append(time.perf_counter() - start)
        return result

    def loss() -> Any:
        with learner.precision.autocast():
            return learner.precision.scaler.scale(learner.loss(learner.model(images), labels)["loss"])

    def update() -> None:
        learner.precision.scaler.step(learner.optimizer)
        learner.precision.scaler.update()
        learner.optimizer.clear_grad()

    for _ in range(steps):
        time_part("input", lambda: to_input(host_images))
        if is_parallel:
            with learner.model.no_sync():
                value = loss()
                time_part("local", value.backward)
            learner.optimizer.clear_grad()
        time_part("backward", time_part("forward", loss).backward)
        time_part("optimizer", update)
    medians = {name: statistics.median(values) for name, values in seconds.items() if values}
    local_seconds = medians.pop("local", medians["backward"])
    return {**medians, "backward": local_seconds, "all-reduce": max(0.0, medians["backward"] - local_seconds)}


def share_of_peak(arguments: argparse.Namespace, seconds: float) -> float | None:
    """Returns the share of the card's peak that a step reaches; None for an unknown card.

    A step counts as three forward passes, because the backward pass needs the operations of two.
    """
    import ppxcls

    peak = next((peaks for name, peaks in PEAK_TFLOPS.items() if name in device_name(arguments.device)), None)
    if peak is None:
        return None
    operations = 6 * multiplications(ppxcls.build_model(arguments.network), arguments.size) * arguments.batch
    return operations / seconds / (1e12 * peak["float32" not in arguments.precision])


def multiplications(network: Any, size: int) -> int:
    """Returns the multiply-adds of one image's forward pass, in convolutions and linear layers."""
    import paddle
    from paddle import nn

    total = 0

    def count(layer: Any, _: Any, output: Any) -> None:
        nonlocal total
        elements = output.shape[1:]
        total += (
            int(paddle.to_tensor(elements).prod())
            * layer.weight.size
            // (layer.weight.shape[1 if isinstance(layer, nn.Linear) else 0])
        )

    hooks = [
        layer.register_forward_post_hook(count)
        for layer in network.sublayers()
        if isinstance(layer, nn.Conv2D | nn.Linear)
    ]
    network.eval()
    with paddle.no_grad():
        network(paddle.zeros([1, 3, size, size]))
    network.train()
    for hook in hooks:
        hook.remove()
    return total


def device_name(device: str) -> str:
    import paddle

    if device == "gpu":
        return str(paddle.device.cuda.get_device_name())
    return f"{device}, {os.cpu_count()} cores" if device == "cpu" else device


if __name__ == "__main__":
    main()
