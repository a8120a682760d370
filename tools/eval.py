"""Evaluate a run: ``python tools/eval.py -c output/Xception41``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ppxcls
from ppxcls import cli


def main() -> None:
    arguments = cli.parse_arguments(
        "Evaluate a run's best_model, or the weights of -o Global.pretrained_model: top-1, top-5, loss."
    )
    config = cli.load_config(arguments)
    ppxcls.evaluate(config)


if __name__ == "__main__":
    cli.run(main)
