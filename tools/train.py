"""Train: ``python tools/train.py -c configs/Xception41.yaml``, or under ``python -m paddle.distributed.launch``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ppxcls
from ppxcls import cli


def main() -> None:
    arguments = cli.parse_arguments("Train a classifier as a YAML says.")
    config = cli.load_config(arguments)
    ppxcls.build_trainer(config).fit()


if __name__ == "__main__":
    cli.run(main)
