"""All comparisons with a peer in one table: ``python scripts/benchmarks/all.py [FOLDER] --json ratios.json``.

    pip install -e ".[cpu,export,test]" torch torchvision timm # with the peers; those that are missing are
    left out FOLDER has ILSVRC's train_list.txt and images; without it, scikit-learn's two sample photos stand
    in

Runs the other benchmarks of this folder one after another. Each takes turns with its peers and prints
medians. A ratio above 1 says that ours is faster. The machine must have nothing else to do.
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

from ratios import ROWS  # of this folder


def commands(images: Path | None, *, quick: bool) -> list[list[str]]:
    """The scripts with their arguments; ``quick`` is to see that they run."""
    folder = [str(images)] if images else []
    rounds = ["--rounds", "1"] if quick else []
    found = [
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
        found.append(["check_data.py", str(images), str(images / "train_list.txt"), *rounds])
    return [command for command in found if not (quick and command[0] in ("train_step.py", "checkpoint.py"))]


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    names = (
        {
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        }
        if info.exists()
        else set()
    )
    return {
        "processor": ", ".join(sorted(names)) or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--only", action="append", metavar="SCRIPT", help="such as loader.py; repeatable")
    parser.add_argument(
        "--quick", action="store_true", help="one round of a little: whether they run, not how fast"
    )
    given = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "rows"
        file.touch()
        for script, *arguments in commands(given.folder, quick=given.quick):
            if given.only and script not in given.only:
                continue
            print(f"\n{script} {' '.join(arguments)}", flush=True)
            command = [sys.executable, str(FOLDER / script), *arguments]
            if subprocess.run(command, check=False, env={**os.environ, ROWS: str(file)}).returncode:  # noqa: S603
                failed.append(script)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    print(f"\n{machine()}\n\n| what | peer | times as fast | ours | peer's | |\n|---|---|---|---|---|---|")
    for row in rows:
        cells = f"{row['ratio']:.2f}x | {row['ours']:.4g} | {row['theirs']:.4g} | {row['unit']}"
        print(f"| {row['what']} | {row['peer']} | {cells} |")
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(*(f"\n{script} failed" for script in failed), file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
