"""Predict: ``python tools/infer.py -c output/Xception41 IMAGES``, or with exported files ``--exported DIR IMAGES``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ppxcls
from ppxcls import cli


def main() -> int:
    arguments = cli.parse_arguments(
        "Predict the classes of images.",
        {
            "images": {"nargs": "*", "metavar": "IMAGES", "help": "files, folders or quoted patterns; default: Infer.infer_imgs"},
            "--format": {"choices": ["paddleclas", "csv", "jsonl"], "default": "paddleclas", "help": "of the output"},
            "--exported": {"metavar": "DIR", "help": "run what export_model.py wrote: the folder, or its .onnx file; needs no -c"},
            "--output": {"metavar": "FILE", "help": "write there instead of to standard output"},
        },
        needs_config=lambda given: not given.exported,
    )
    config = cli.load_config(arguments, sys.stderr) if arguments.config else None
    failed = ppxcls.infer(config, arguments.format, arguments.exported, arguments.output, arguments.images)
    return cli.EXIT_ERROR if failed else 0


if __name__ == "__main__":
    cli.run(main)
