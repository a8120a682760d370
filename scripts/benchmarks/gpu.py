"""Measures a training step on your devices, by network, precision and number of cards.

    python scripts/benchmarks/gpu.py --device gpu --cards 1,2,4,8 --json gpu.json
    # a test of this script on the CPU:
    python scripts/benchmarks/gpu.py --device cpu --cards 1,2 --size 71 --batch 2 --steps 2 --loader-batches 2

Prints images/s and the time of each part of a step. Each row is measured in separate processes, under
Paddle's launcher if there are several cards. A row has the rate of the whole step with images on the
device, the rate with the loader reading JPEGs, and the operators that the host dispatches in a step. It also
has the times of the parts of a step, with a synchronisation after each part. The all-reduce time is the
backward pass with all-reduce minus the backward pass without it. The loader reads one long epoch, so it never
starts anew.

If torch and timm are installed, timm's network on torch is measured between the rows, in separate processes.
``--rounds`` repeats all rows in turn and prints medians. ``--profile DIR`` writes a trace for chrome://tracing
or ui.perfetto.dev.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from gpu_worker import UNTIMED_BATCHES  # scripts/benchmarks/gpu_worker.py
from precisions import PRECISIONS, available_precisions  # scripts/benchmarks/precisions.py
from ratios import compare  # scripts/benchmarks/ratios.py
from sample_images import write_images  # scripts/benchmarks/sample_images.py

SPARE_BATCHES = 5  # batches of the epoch beyond those that are measured
PEER = "timm on torch, "
PEER_PRECISIONS = {"float32": "float32-nhwc", "float16": "bfloat16-nhwc", "bfloat16": "bfloat16-nhwc"}
PARTS = ["input", "forward", "loss", "backward", "all-reduce", "optimizer", "scoring"]
Row = dict[str, Any]


def main() -> None:
    arguments = parse_arguments()
    names = available_precisions() if arguments.precisions == "all" else arguments.precisions.split(",")
    cards = [int(number) for number in arguments.cards.split(",")]
    has_peer = not arguments.no_peer and all(importlib.util.find_spec(name) for name in ("torch", "timm"))
    if not has_peer:
        print("without timm on torch: torch or timm is not installed, or --no-peer is given\n", flush=True)
    keys = row_keys(arguments.networks.split(","), names, cards, has_peer=has_peer)
    rows_by_key: dict[tuple[str, str, int], list[Row]] = {key: [] for key in keys}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        batches = UNTIMED_BATCHES + arguments.loader_batches + SPARE_BATCHES
        samples = batches * arguments.batch * max(cards)
        data = write_images(Path(folder), min(arguments.files, samples), samples)
        for round_number in range(arguments.rounds):
            for key in keys:
                rows_by_key[key].append(measure_row(arguments, *key, data))
                if round_number == arguments.rounds - 1:
                    rows.append(median_row(rows_by_key[key]))
                    print_row(rows[-1], rows)
    print_comparisons(rows)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="gpu", help="gpu, cpu, xpu, or a custom device")
    parser.add_argument("--cards", default="1", help="numbers of cards to measure, such as 1,2,4,8")
    parser.add_argument("--networks", default="Xception41")
    parser.add_argument(
        "--precisions", default="all", help=f"all (default), or some of {', '.join(PRECISIONS)}"
    )
    parser.add_argument("--batch", type=int, default=64, help="images per card")
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--steps", type=int, default=30, help="steps to measure with images on the device")
    parser.add_argument("--loader-batches", type=int, default=40, help="batches per card, from the loader")
    parser.add_argument(
        "--files", type=int, default=512, help="JPEGs of 500 x 375 pixels; the list repeats them"
    )
    parser.add_argument("--workers", type=int, default=8, help="loader threads per card, in all")
    parser.add_argument("--processes", type=int, help="loader processes per card (default: the config's)")
    parser.add_argument("--rounds", type=int, default=1, help="number of times that all rows are measured")
    parser.add_argument("--card", help="name of the card, if Paddle does not know it, such as H100")
    parser.add_argument("--no-peer", action="store_true", help="leaves timm on torch out")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--profile", metavar="DIR")
    arguments = parser.parse_args()
    names = [] if arguments.precisions == "all" else arguments.precisions.split(",")
    if unknown_names := [name for name in names if name not in PRECISIONS]:
        parser.error(f"--precisions: unknown {', '.join(unknown_names)}; expected {', '.join(PRECISIONS)}")
    return arguments


def row_keys(
    networks: list[str], precisions: list[str], cards: list[int], *, has_peer: bool
) -> list[tuple[str, str, int]]:
    """Returns network, precision and number of cards of each row.

    The peer's row follows the first of our rows that are compared with it, so the card is about as warm.
    """
    keys: list[tuple[str, str, int]] = []
    for network in networks:
        for precision in precisions:
            keys += [(network, precision, number) for number in cards]
            peer_key = (network, PEER + peer_precision(precision), 1)
            if has_peer and peer_key not in keys:
                keys.append(peer_key)
    return keys


def peer_precision(precision: str) -> str:
    """Returns the peer's precision that one of ours is compared with. Channels last is torch's fastest."""
    return PEER_PRECISIONS[precision.split("-", maxsplit=1)[0]]


def measure_row(arguments: argparse.Namespace, network: str, precision: str, cards: int, data: Path) -> Row:
    """Returns one row, measured by workers in separate processes."""
    output = data / "result.json"
    output.unlink(missing_ok=True)
    names = ["device", "batch", "size", "steps"]
    options: dict[str, Any] = {"network": network, "precision": precision, "output": output}
    script = "gpu_worker.py"
    if precision.startswith(PEER):
        script = "torch_step.py"
        options |= {"network": network.lower(), "precision": precision.removeprefix(PEER)}
    else:
        options["data"] = data
        names += ["workers", "processes", "loader_batches", "card"]
    options |= {name.replace("_", "-"): getattr(arguments, name) for name in names}
    if arguments.profile and cards == 1 and not precision.startswith(PEER):
        options["profile"] = Path(arguments.profile).resolve() / f"{network}-{precision}"
    launch = []
    if cards > 1:
        launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(cards)]
        launch += ["--log_dir", str(data / "log")]
    words = [
        word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))
    ]
    result = subprocess.run(  # noqa: S603  a script of this folder
        [sys.executable, *launch, str(FOLDER / script), *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=data,
    )
    key = {"network": network, "precision": precision, "cards": cards}
    if result.returncode or not output.exists():
        lines = (result.stderr or result.stdout).strip().splitlines()
        return {**key, "error": lines[-1][:200] if lines else f"exit code {result.returncode}"}
    return {**key, **json.loads(output.read_text())}


def median_row(rows: list[Row]) -> Row:
    """Returns the last row with the medians of the rates and of the parts of all rounds."""
    good_rows = [row for row in rows if "error" not in row]
    if not good_rows:
        return rows[-1]
    median = dict(good_rows[-1])
    for name in ("ips", "ips_loader", "share_of_peak"):
        if median.get(name) is not None:
            median[name] = statistics.median(row[name] for row in good_rows)
    if "parts" in median:
        median["parts"] = {
            name: statistics.median(row["parts"][name] for row in good_rows) for name in median["parts"]
        }
    return median


def print_row(row: Row, rows: list[Row]) -> None:
    """Prints a row as a line of a Markdown table."""
    if len(rows) == 1:
        titles = ["network", "precision", "cards", "images/s", "of one card", "with the loader"]
        titles += ["share of the peak", "operators", "memory", "input ms", *PARTS[1:]]
        print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    cells = [row["network"], row["precision"], str(row["cards"])]
    if "error" in row:
        print(f"| {' | '.join(cells)} | {row['error']} |", flush=True)
        return
    cells += [f"{row['ips']:.4g}", scaling(row, rows)]
    cells.append(f"{row['ips_loader']:.4g}" if "ips_loader" in row else "-")
    cells.append(f"{row['share_of_peak']:.0%} of {row['peak']}" if row.get("share_of_peak") else "-")
    cells.append(f"{row['operators_in_all']:,}" if row.get("operators_in_all") else "-")
    cells.append(f"{row['memory_gib']:.1f} GiB" if row.get("memory_gib") else "-")
    parts = row.get("parts", {})
    cells += [f"{1000 * parts[name]:.1f}" if name in parts else "-" for name in PARTS]
    print(f"| {' | '.join(cells)} |", flush=True)


def scaling(row: Row, rows: list[Row]) -> str:
    """Returns how many times as fast as one card a row is; ``-`` if one card was not measured."""
    for candidate in rows:
        if all(candidate[key] == row[key] for key in ("network", "precision")) and candidate["cards"] == 1:
            return f"{row['ips'] / candidate['ips']:.2f}x" if "ips" in candidate else "-"
    return "-"


def print_comparisons(rows: list[Row]) -> None:
    """Prints how many times as fast as the peer each of our rows of one card is."""
    rates = {
        (row["network"], row["precision"]): row["ips"] for row in rows if "ips" in row and row["cards"] == 1
    }
    for (network, precision), rate in rates.items():
        if not precision.startswith(PEER):
            peer = PEER + peer_precision(precision)
            if (network, peer) in rates:
                compare(f"{network} {precision}", peer, rate, rates[network, peer], "images/s")


if __name__ == "__main__":
    main()
