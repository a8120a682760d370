"""Runs all comparisons with a peer and prints one table.

    pip install -e ".[cpu,export,test]" torch torchvision timm   # with the peers; a missing peer is left out
    python scripts/benchmarks/all.py [FOLDER] --json ratios.json

FOLDER contains ILSVRC's train_list.txt and images. Without it, scikit-learn's two sample photos are used.

Runs the other benchmarks of this folder one after another. Each alternates with its peers and prints medians.
A ratio above 1 means that this package is faster. The machine must have no other load.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent

from ratios import ROWS  # scripts/benchmarks/ratios.py


def commands(images: Path | None, *, quick: bool) -> list[list[str]]:
    """Returns the scripts with their arguments.

    Args:
        images: folder with images and train_list.txt; None for scikit-learn's sample photos.
        quick: True for a minimal run that only checks that the scripts work.
    """
    folder = [str(images)] if images else []
    rounds = ["--rounds", "1"] if quick else []
    script_commands = [
        ["loader.py", *folder, *rounds, *(["--images", "64"] if quick else [])],
        ["augment.py", *folder, *rounds, *(["--count", "4"] if quick else [])],
        *(
            ["train_step.py", "--size", size, "--batch", batch, *rounds]
            for size, batch in (("299", "4"), ("71", "32"))
        ),
        ["inference.py", *rounds, *(["--batch", "1"] if quick else [])],
        ["checkpoint.py", *rounds, *(["--steps", "1"] if quick else [])],
    ]
    if images:
        script_commands.append(["check_data.py", str(images), str(images / "train_list.txt"), *rounds])
    return [
        command
        for command in script_commands
        if not (quick and command[0] in ("train_step.py", "checkpoint.py"))
    ]


def machine() -> dict[str, Any]:
    """Returns the facts about the machine that the results depend on."""
    cpu_file = Path("/proc/cpuinfo")
    processors = (
        {
            line.split(":", 1)[1].strip()
            for line in cpu_file.read_text().splitlines()
            if line.startswith("model name")
        }
        if cpu_file.exists()
        else set()
    )
    return {
        "processor": ", ".join(sorted(processors)) or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the table's rows")
    parser.add_argument(
        "--only", action="append", metavar="SCRIPT", help="script to run, such as loader.py; repeatable"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round with little data: checks only that the scripts run"
    )
    options = parser.parse_args()
    failed_scripts = []
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "rows"
        file.touch()
        for script, *arguments in commands(options.folder, quick=options.quick):
            if options.only and script not in options.only:
                continue
            print(f"\n{script} {' '.join(arguments)}", flush=True)
            command = [sys.executable, str(FOLDER / script), *arguments]
            if subprocess.run(command, check=False, env={**os.environ, ROWS: str(file)}).returncode:  # noqa: S603
                failed_scripts.append(script)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    print(f"\n{machine()}\n\n| what | peer | times as fast | ours | peer's | |\n|---|---|---|---|---|---|")
    for row in rows:
        cells = f"{row['ratio']:.2f}x | {row['ours']:.4g} | {row['theirs']:.4g} | {row['unit']}"
        print(f"| {row['what']} | {row['peer']} | {cells} |")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(*(f"\n{script} failed" for script in failed_scripts), file=sys.stderr)
    return len(failed_scripts)


if __name__ == "__main__":
    sys.exit(main())
