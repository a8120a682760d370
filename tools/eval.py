"""Evaluates a run: ``python tools/eval.py -c output/Xception41``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppxcls.cli.verbs import run_verb

if __name__ == "__main__":
    run_verb("eval")
