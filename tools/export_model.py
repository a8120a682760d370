"""Exports a run for Paddle Inference and ONNX.

Usage: ``python tools/export_model.py -c FILE -o Global.pretrained_model=WEIGHTS``.
``-o Global.save_inference_dir=DIR`` sets the output folder.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppxcls.cli.verbs import run_verb

if __name__ == "__main__":
    run_verb("export")
