"""Exported Xception41 on the CPU against Paddle as it comes:
``python scripts/benchmarks/inference.py --batch 4``.

Four ways in turn, each in a process of its own: the network in eager Paddle without what this package sets
up, the exported files under Paddle Inference with oneDNN, and under ONNX Runtime, in float32 and in 8 bits.
Medians of rounds, after one that warms up.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from ratios import compare, untuned  # of this folder

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("Paddle as it comes", "Paddle Inference", "ONNX Runtime", "ONNX Runtime, 8 bits")


def worker(way: str, folder: Path, batch: int) -> None:
    """Reads a line, predicts a batch, prints the seconds; until the input ends."""
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (batch, 299, 299, 3), np.uint8)
    if way == WAYS[0]:
        import paddle  # first, so that the package changes nothing

        sys.path.insert(0, str(ROOT))
        import ppxcls
        from ppxcls.ops import cpu

        cpu.are_plain = lambda *_: False  # then no operator of ours applies
        model = ppxcls.build_model("Xception41")
        model.eval()

        def run(images: np.ndarray) -> np.ndarray:
            with paddle.no_grad():
                return model(paddle.to_tensor(images.transpose(0, 3, 1, 2).astype("float32") / 255)).numpy()
    else:
        sys.path.insert(0, str(ROOT))
        import ppxcls

        ppxcls.load_config  # noqa: B018  sets up and imports Paddle
        from ppxcls.deploy import int8
        from ppxcls.deploy.runners import onnx_runner, paddle_runner

        file = folder / ("inference.onnx" if way == WAYS[2] else int8.INT8_FILE)
        run = paddle_runner(folder) if way == WAYS[1] else onnx_runner(file)  # type: ignore[assignment]
    for _ in sys.stdin:
        start = time.perf_counter()
        run(images)
        print(time.perf_counter() - start, flush=True)


def export(folder: Path) -> None:
    """Xception41 with fresh weights, exported, and in 8 bits."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    import ppxcls
    from ppxcls.data.transforms import split_for_device

    model = ppxcls.build_model("Xception41")
    from ppxcls.deploy import int8
    from ppxcls.deploy.export import export_model
    from ppxcls.deploy.metadata import ExportMetadata

    _, stage = split_for_device(ppxcls.build_transforms([{"NormalizeImage": {"order": ""}}]))
    images = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 3), np.uint8)
    export_model(
        model,
        stage,
        images=images,
        folder=folder,
        metadata=ExportMetadata("Xception41", "fresh weights", [], [], 1000),
    )
    int8.quantise_file(folder / "inference.onnx", folder / int8.INT8_FILE, [(images, np.zeros(2))], folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.folder, arguments.batch)
        return
    with tempfile.TemporaryDirectory() as name:
        export(Path(name))
        processes = []
        for way in WAYS:
            command = [
                sys.executable,
                __file__,
                "--worker",
                way,
                "--folder",
                name,
                "--batch",
                str(arguments.batch),
            ]
            # S603: this file itself, with numbers that argparse has parsed; no shell.
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": untuned()}
            processes.append(subprocess.Popen(command, **pipes))  # type: ignore[call-overload]  # noqa: S603
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(arguments.rounds + 1):
            for way, process in zip(WAYS, processes, strict=True):
                process.stdin.write("\n")
                process.stdin.flush()
                line = process.stdout.readline()
                while not line.strip().replace(".", "").replace("e-", "").isdigit():
                    line = process.stdout.readline()
                seconds[way].append(float(line))
        for process in processes:
            process.stdin.close()
            process.wait()
    base = median(seconds[WAYS[0]][1:])
    for way in WAYS[1:]:
        what = f"a batch of {arguments.batch}, exported: {way}"
        compare(what, "Paddle as it comes", median(seconds[way][1:]), base, "s")
    what = f"a batch of {arguments.batch}, exported: 8 bits"
    compare(what, "float32, ONNX Runtime", median(seconds[WAYS[3]][1:]), median(seconds[WAYS[2]][1:]), "s")


if __name__ == "__main__":
    main()
