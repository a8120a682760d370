"""The verb ``average``: averages the weights of a run's checkpoints."""

from __future__ import annotations

import argparse

import ppxcls
from ppxcls import cli

_DEFAULT_BATCHES = 100


def run_average(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``average``, parses them, averages, and prints the result."""
    parser.add_argument("run", metavar="RUN", help="folder of a run with checkpoints epoch_N")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--last", type=int, metavar="N", help="average the newest N checkpoints")
    choice.add_argument(
        "--epochs", type=_epochs, default=(), metavar="N,N", help="average the checkpoints of these epochs"
    )
    choice.add_argument(
        "--greedy",
        action="store_true",
        help="begin with the checkpoint that evaluates best, and add each other one, the best first, if the "
        "evaluation of the mean does not fall",
    )
    parser.add_argument(
        "--batches",
        type=int,
        default=_DEFAULT_BATCHES,
        metavar="N",
        help="batches of training images that give the batch norms their statistics; 0 for the means of "
        f"those of the checkpoints (default: {_DEFAULT_BATCHES})",
    )
    cli.add_override_option(parser)
    cli.add_trust_option(parser)
    arguments = parser.parse_args()
    result = ppxcls.average(
        arguments.run,
        last=arguments.last,
        epochs=arguments.epochs,
        greedy=arguments.greedy,
        batches=arguments.batches,
        overrides=arguments.override,
        trust=arguments.trust,
    )
    figures = ""
    if result.results:
        figures = f": {result.metric} {result.results[result.metric]:.5f}"
        figures += "" if result.best_value is None else f" (best_model: {result.best_value:.5f})"
    cli.print_line(f"mean of {', '.join(result.names)}{figures}")
    cli.print_line(f"to use it: ppxcls eval -c {arguments.run} -o Global.pretrained_model={result.path}")


def _epochs(text: str) -> list[int]:
    """Returns the numbers of epochs that are given as text, separated by commas."""
    words = text.split(",")
    if all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
        return [int(word) for word in words]
    raise argparse.ArgumentTypeError(f"expected epochs such as 3,5,7, received {text!r}")
