"""Measures exported Xception41 on the CPU against plain Paddle.

    python scripts/benchmarks/inference.py --batch 4

Alternates between four methods, each in its own process. They are the network in eager Paddle without this
package's settings, the exported files in Paddle Inference with oneDNN, and ONNX Runtime in float32 and in 8
bits. Prints medians of the rounds after a warm-up round.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from ratios import compare, untuned  # scripts/benchmarks/ratios.py

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("Paddle as it comes", "Paddle Inference", "ONNX Runtime", "ONNX Runtime, 8 bits")


def worker(method: str, folder: Path, batch: int) -> None:
    """Predicts a batch and prints the seconds for each line of standard input, until the input ends."""
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (batch, 299, 299, 3), np.uint8)
    if method == METHODS[0]:
        import paddle  # before ppxcls, so that the package changes no settings

        sys.path.insert(0, str(ROOT))
        import ppxcls
        from ppxcls.ops import cpu

        cpu.are_plain = lambda *_: False  # turns this package's operators off
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

        file = folder / ("inference.onnx" if method == METHODS[2] else int8.INT8_FILE)
        run = paddle_runner(folder) if method == METHODS[1] else onnx_runner(file)  # type: ignore[assignment]
    for _ in sys.stdin:
        start = time.perf_counter()
        run(images)
        print(time.perf_counter() - start, flush=True)


def export(folder: Path) -> None:
    """Exports Xception41 with fresh weights, in float32 and in 8 bits."""
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
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.folder, arguments.batch)
        return
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder))
        processes = []
        for method in METHODS:
            command = [
                sys.executable,
                __file__,
                "--worker",
                method,
                "--folder",
                folder,
                "--batch",
                str(arguments.batch),
            ]
            # S603: runs this file with numbers that argparse has parsed, without a shell.
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": untuned()}
            processes.append(subprocess.Popen(command, **pipes))  # type: ignore[call-overload]  # noqa: S603
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        for _ in range(arguments.rounds + 1):
            for method, process in zip(METHODS, processes, strict=True):
                process.stdin.write("\n")
                process.stdin.flush()
                line = process.stdout.readline()
                while not line.strip().replace(".", "").replace("e-", "").isdigit():
                    line = process.stdout.readline()
                seconds[method].append(float(line))
        for process in processes:
            process.stdin.close()
            process.wait()
    eager_seconds = median(seconds[METHODS[0]][1:])
    for method in METHODS[1:]:
        title = f"a batch of {arguments.batch}, exported: {method}"
        compare(title, "Paddle as it comes", median(seconds[method][1:]), eager_seconds, "s")
    title = f"a batch of {arguments.batch}, exported: 8 bits"
    compare(
        title, "float32, ONNX Runtime", median(seconds[METHODS[3]][1:]), median(seconds[METHODS[2]][1:]), "s"
    )


if __name__ == "__main__":
    main()
