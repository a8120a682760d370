"""Look over the installation: ``python tools/doctor.py``. The exit code is 0 if all is well, otherwise 1."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppxcls.system.paths import printable
from ppxcls.train.doctor import look


def main() -> int:
    parser = argparse.ArgumentParser(description="Versions, devices, a training step on each, image libraries, threads, disk.")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="on the disk that runs will write to")
    arguments = parser.parse_args()
    is_ok = True
    for finding in look(arguments.output):
        print(printable(str(finding)), flush=True)
        is_ok &= finding.is_ok
    print("all is well" if is_ok else "something is wrong: see the lines that begin with BAD")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
