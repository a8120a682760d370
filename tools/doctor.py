"""Look over the installation: ``python tools/doctor.py``. The exit code is 0 if all is well, otherwise 1."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppxcls import cli
from ppxcls.cli import verbs

if __name__ == "__main__":
    cli.run(verbs.doctor)
