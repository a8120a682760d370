"""Predicts the classes of images.

Usage: ``python tools/infer.py -c output/Xception41 IMAGES``, or with exported files
``python tools/infer.py --exported DIR IMAGES``.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppxcls.cli.verbs import run_verb

if __name__ == "__main__":
    run_verb("infer")
