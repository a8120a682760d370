"""Predict: ``python tools/infer.py -c configs/Xception41.yaml -o Infer.infer_imgs=DIR -o Global.pretrained_model=WEIGHTS``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ppxcls
from ppxcls import cli


def main() -> int:
    arguments = cli.parse_arguments(
        "Predict the classes of images: a file, a folder, or a quoted pattern.",
        {
            "--format": {"choices": ["paddleclas", "csv", "jsonl"], "default": "paddleclas", "help": "of the output"},
            "--exported": {"metavar": "DIR", "help": "run what export_model.py wrote: the folder, or its .onnx file"},
            "--output": {"metavar": "FILE", "help": "write there instead of to standard output"},
        },
    )
    config = ppxcls.load_config(arguments.config, arguments.override)
    failed = ppxcls.infer(config, arguments.format, arguments.exported, arguments.output)
    return cli.EXIT_ERROR if failed else 0


if __name__ == "__main__":
    cli.run(main)
