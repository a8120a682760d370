"""List files from folders of images: ``python tools/make_lists.py PICTURES -o dataset/NAME``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppxcls import cli
from ppxcls.cli import verbs

if __name__ == "__main__":
    cli.run(verbs.lists)
