"""A packed data set from a list: ``python tools/pack_dataset.py LIST -o DIR``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppxcls import cli
from ppxcls.cli import verbs

if __name__ == "__main__":
    cli.run(verbs.pack)
