"""Tries hostile inputs on each surface of the package, and counts how often its promise holds.

    python scripts/hostile.py                    # all surfaces
    python scripts/hostile.py programs serving   # some of them
    python scripts/hostile.py --quick            # the cases that the tests run too

Each module of ``scripts/hostility`` is a surface. ``PROMISE`` says in one sentence what SECURITY.md promises
for it, and ``cases()`` returns its cases. A surface runs in its own process. The last lines are a table: the
number of cases, how many kept the promise, and the longest time and the largest memory of a case. The exit
code is 1 if a case broke a promise.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

SURFACES = sorted(
    file.stem for file in (FOLDER / "hostility").glob("*.py") if file.stem not in ("cases", "__init__")
)


def run_surface(name: str, *, is_quick: bool, words: list[str]) -> None:
    """Runs the cases of one surface, and prints a JSON object for each."""
    surface = importlib.import_module(f"hostility.{name}")
    print(json.dumps({"promise": surface.PROMISE}), flush=True)
    for case in surface.cases():
        if (is_quick and not case.is_quick) or not all(word in case.name for word in words):
            continue
        with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
            try:
                outcome, problem = case.run(Path(folder))
                facts = {"seconds": round(outcome.seconds, 2), "peak_mib": round(outcome.peak_mib)}
            except Exception as error:
                facts, problem = {}, f"{type(error).__name__}: {error}"[:300]
        print(json.dumps({"case": case.name, "problem": problem, **facts}), flush=True)


def main() -> int:
    """Runs the surfaces, and prints their findings and a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("surfaces", nargs="*", metavar="SURFACE", help=f"one of: {', '.join(SURFACES)}")
    parser.add_argument("--quick", action="store_true", help="only the quick cases")
    parser.add_argument("--match", action="append", default=[], help="only cases with this in their name")
    parser.add_argument("--verbose", action="store_true", help="print each case with its time and memory")
    parser.add_argument("--run", choices=SURFACES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_surface(arguments.run, is_quick=arguments.quick, words=arguments.match)
        return 0
    if unknown_names := set(arguments.surfaces) - set(SURFACES):
        parser.error(f"unknown surface {sorted(unknown_names)[0]!r}; expected one of: {', '.join(SURFACES)}")
    rows, finding_count = [], 0
    for name in arguments.surfaces or SURFACES:
        command = [sys.executable, __file__, "--run", name]
        command += [*(["--quick"] if arguments.quick else []), *(f"--match={w}" for w in arguments.match)]
        # S603: runs this file with the name of one of its modules, without a shell.
        result = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
        facts = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
        cases = [fact for fact in facts if "case" in fact]
        findings = [case for case in cases if case["problem"]]
        for case in cases if arguments.verbose else findings:
            print(
                f"{name}: {case['case']}: {case['problem'] or 'held'} "
                f"({case.get('seconds', 0):.1f} s, {case.get('peak_mib', 0)} MiB)"
            )
        if result.returncode != 0:
            print(f"{name}: the process ended with {result.returncode}: {result.stderr[-500:]}")
        finding_count += len(findings) + (result.returncode != 0)
        rows.append(
            f"{name:<12} {len(cases):>5} {len(cases) - len(findings):>5} "
            f"{max((case.get('seconds', 0) for case in cases), default=0):>8.1f} "
            f"{max((case.get('peak_mib', 0) for case in cases), default=0):>8}"
        )
    print(f"{'surface':<12} {'cases':>5} {'held':>5} {'max s':>8} {'max MiB':>8}")
    print("\n".join(rows))
    return 1 if finding_count else 0


if __name__ == "__main__":
    sys.exit(main())
