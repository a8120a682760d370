"""Trains a classifier: ``python tools/train.py -c configs/Xception41.yaml``.

It also runs in several processes under ``python -m paddle.distributed.launch``.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppxcls.cli.verbs import run_verb

if __name__ == "__main__":
    run_verb("train")
