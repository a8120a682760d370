"""What a training step costs on your devices: images/s by network, precision and number of cards, and where
the
time goes.

    python scripts/benchmarks/gpu.py --device gpu --cards 1,2,4,8 --json gpu.json python
    scripts/benchmarks/gpu.py --device cpu --cards 1,2 --size 71 --batch 2 --steps 2 --files 8 # a test of
    this script

Each line is measured in processes of its own, under Paddle's launcher if there are several cards: the whole
step with images that lie on the device, the same with the loader reading JPEGs, and the parts of a step, each
waited for. The all-reduce is the backward pass with it minus that without. ``--profile DIR`` writes a trace
for chrome://tracing or ui.perfetto.dev.
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
# Dense peaks in TFLOP/s by the makers' data sheets: float32, and half precision on tensor cores.
PEAKS = {
    "BI-V100": (37, 147),  # before V100, because names are searched
    "V100": (15.7, 125),
    "A100": (19.5, 312),
    "3090": (35.6, 142),
    "4090": (82.6, 330),
    "H100": (67, 990),
}


def main() -> None:
    arguments = parsed()
    if arguments.worker:
        work(arguments)
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder), arguments.files)
        for network in arguments.networks.split(","):
            for precision in arguments.precisions.split(","):
                for cards in map(int, arguments.cards.split(",")):
                    rows.append(measured(arguments, network, precision, cards, data))
                    print_row(rows[-1], rows)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="gpu")
    parser.add_argument("--cards", default="1", help="numbers of cards, such as 1,2,4,8")
    parser.add_argument("--networks", default="Xception41")
    parser.add_argument("--precisions", default="float32,float16-nhwc", help=f"of {', '.join(PRECISIONS)}")
    parser.add_argument("--batch", type=int, default=64, help="images per card")
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--files", type=int, default=512, help="JPEGs for the loader, 500 x 375 pixels")
    parser.add_argument("--workers", type=int, default=8, help="threads of the loader per card")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--profile", metavar="DIR")
    for name in ("--worker", "--network", "--precision", "--data"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_data(folder: Path, count: int) -> Path:
    """JPEGs with the texture of photographs, and their list."""
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


def measured(
    arguments: argparse.Namespace, network: str, precision: str, cards: int, data: Path
) -> dict[str, Any]:
    """One row, from workers in processes of their own."""
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
    done = subprocess.run(  # noqa: S603  this script
        [sys.executable, *launch, __file__, *words], check=False, capture_output=True, text=True, cwd=data
    )
    place = {"network": network, "precision": precision, "cards": cards}
    if done.returncode or not output.exists():
        lines = (done.stderr or done.stdout).strip().splitlines()
        return {**place, "error": lines[-1][:200] if lines else f"exit code {done.returncode}"}
    return {**place, **json.loads(output.read_text())}


def print_row(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """A line of a Markdown table."""
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
    one = next(
        (
            r
            for r in rows
            if (r["network"], r["precision"], r["cards"]) == (row["network"], row["precision"], 1)
        ),
        None,
    )
    scaling = f"{row['ips'] / one['ips']:.2f}x" if one and "ips" in one else "-"
    share = f"{row['share_of_peak']:.0%}" if row["share_of_peak"] else "-"
    parts = [
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
        *parts,
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def work(arguments: argparse.Namespace) -> None:
    """Measure in this process, one of several; the first writes the result."""
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

    learner, world = trainer.learner, dist.get_world_size()
    rng = np.random.default_rng(0)
    images = paddle.to_tensor(
        rng.normal(0, 1, (arguments.batch, 3, arguments.size, arguments.size)).astype(np.float32)
    )
    labels = paddle.to_tensor(rng.integers(0, 1000, arguments.batch))

    def step() -> float:
        return float(learner.step(images, labels, 1.0, is_update_step=True)[0])

    with profiled(arguments.profile):
        for _ in range(3):
            step()
    seconds = statistics.median(timed(step) for _ in range(arguments.steps))
    first = next(iter(trainer.loader.epoch(1)))
    result = {
        "ips": arguments.batch * world / seconds,
        "ips_loader": with_loader(trainer, arguments.steps, world),
        "parts": parts(learner, images, labels, trainer._to_input, first.images, arguments.steps),
        "share_of_peak": share_of_peak(arguments, seconds),
        "paddle": paddle.__version__,
        "device": device_name(arguments.device),
        **{name: getattr(arguments, name) for name in ("batch", "size", "steps", "workers")},
    }
    if dist.get_rank() == 0:
        Path(arguments.worker).write_text(json.dumps(result))
    trainer.run.folder.release()


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the device; a CPU has nothing to wait for."""
    import paddle

    if paddle.get_device() != "cpu":
        paddle.device.synchronize()


@contextlib.contextmanager
def profiled(folder: str | None) -> Any:
    """Write a trace of the block, if a folder is given."""
    if not folder:
        yield
        return
    from paddle import profiler

    with profiler.Profiler(on_trace_ready=profiler.export_chrome_tracing(folder)):
        yield


def with_loader(trainer: Any, steps: int, world: int) -> float:
    """Images/s of the loop's own steps, with JPEGs that are read, decoded and augmented."""
    count, epoch = 0, 1
    start = None
    while count < steps:
        for batch in trainer.loader.epoch(epoch):
            trainer.train_on(batch)
            if start is None:  # the first batch waits for the threads to begin
                synchronize()
                start = time.perf_counter()
                continue
            count += 1
            if count == steps:
                break
        epoch += 1
    synchronize()
    assert start is not None
    return trainer.loader.sampler.batch_size * world * steps / (time.perf_counter() - start)


def parts(
    learner: Any, images: Any, labels: Any, to_input: Any, host_images: Any, steps: int
) -> dict[str, float]:
    """Median seconds of the parts of a step, each waited for, so that their sum is more than a step."""
    import paddle

    is_parallel = isinstance(learner.model, paddle.DataParallel)
    seconds: dict[str, list[float]] = {
        "input": [],
        "forward": [],
        "backward": [],
        "local": [],
        "optimizer": [],
    }

    def part(name: str, call: Callable[[], Any]) -> Any:
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
        part("input", lambda: to_input(host_images))
        if is_parallel:
            with learner.model.no_sync():
                value = loss()
                part("local", value.backward)
            learner.optimizer.clear_grad()
        part("backward", part("forward", loss).backward)
        part("optimizer", update)
    medians = {name: statistics.median(values) for name, values in seconds.items() if values}
    local = medians.pop("local", medians["backward"])
    return {**medians, "backward": local, "all-reduce": max(0.0, medians["backward"] - local)}


def share_of_peak(arguments: argparse.Namespace, seconds: float) -> float | None:
    """Share of the card's peak that a step reaches: three forward passes' operations, two of them for the
    backward pass."""
    import ppxcls

    peak = next((peaks for name, peaks in PEAKS.items() if name in device_name(arguments.device)), None)
    if peak is None:
        return None
    operations = 6 * multiplications(ppxcls.build_model(arguments.network), arguments.size) * arguments.batch
    return operations / seconds / (1e12 * peak["float32" not in arguments.precision])


def multiplications(network: Any, size: int) -> int:
    """Multiply-adds of a forward pass of one image, in convolutions and linear layers."""
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
