"""The verb ``verify``: repeats steps of a run, and compares the bits."""

from __future__ import annotations

import argparse
import sys

import ppxcls
from ppxcls import cli
from ppxcls.system import environment
from ppxcls.system.errors import UserError

EXIT_DIFFERENT, EXIT_NOT_COMPARED = 1, 2
_MAX_LINES = 10


def run_verify(parser: argparse.ArgumentParser) -> int:
    """Adds the arguments of ``verify``, parses them, repeats the steps, and prints the result.

    Returns:
        0 if the bits are the same, 1 if they differ, and 2 if the run can't be compared.
    """
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="largest number of optimizer steps, at most to the end of the epoch; 0 for the whole rest of it "
        "(default: 20, or up to the next log line)",
    )
    parser.add_argument(
        "--from",
        dest="from_epoch",
        type=int,
        metavar="EPOCH",
        help="epoch to start at, which needs a checkpoint of its start, except for epoch 1 (default: the "
        "newest checkpoint before the end)",
    )
    cli.add_override_option(parser)
    cli.add_trust_option(parser)
    arguments = parser.parse_args()
    environment.import_paddle()
    from ppxcls import TrainingError

    try:
        result = ppxcls.verify(
            arguments.run,
            arguments.steps,
            from_epoch=arguments.from_epoch,
            overrides=arguments.override,
            trust=arguments.trust,
        )
    except TrainingError as error:  # the run's own loss was finite
        cli.print_line(f"different: {error}", sys.stderr)
        return EXIT_DIFFERENT
    except (UserError, OSError) as error:
        cli.print_line(f"can't be compared: {error}", sys.stderr)
        return EXIT_NOT_COMPARED
    if environment.launched_rank() == 0:
        for text in result.differences[:_MAX_LINES]:
            cli.print_line(text)
        if len(result.differences) > _MAX_LINES:
            print(f"... and {len(result.differences) - _MAX_LINES} more")
        for text in result.causes:
            cli.print_line(f"{'no effect' if result.is_same else 'possible cause'}: {text}")
        cli.print_line(result.summary)
    return 0 if result.is_same else EXIT_DIFFERENT
