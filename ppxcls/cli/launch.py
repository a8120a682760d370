"""The verb ``ppxcls launch``: Paddle's launcher with restarts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ppxcls.cli import add_trust_option
from ppxcls.system.supervisor import Supervisor, host_problem, launch_command

_PARALLEL_VERBS = ("train", "eval", "verify")  # verbs that can run in several processes
_SINGLE_VERBS = ("verify",)  # verbs whose exit code is a result, so they are not restarted
_PROGRAM = str(Path(__file__).resolve().parents[1] / "__main__.py")


def run_launcher(parser: argparse.ArgumentParser) -> int:
    """Runs a job under ``paddle.distributed.launch``, and restarts it if it fails.

    Returns:
        The exit code of the last run.
    """
    parser.epilog = (
        f"{parser.epilog}\n\nAll other options are the "
        "launcher's: --gpus, --devices, --nnodes, --master, --host."
    )
    parser.usage = (
        "ppxcls launch [--restarts N] [--pause SECONDS] [LAUNCHER'S OPTIONS] train|eval|verify|SCRIPT.py ..."
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=10,
        metavar="N",
        help="restarts in a row before giving up; a newer checkpoint resets the count (default: 10)",
    )
    parser.add_argument(
        "--pause",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="seconds before the first restart, doubled each time up to 300 (default: 5)",
    )
    add_trust_option(parser)
    words = sys.argv[1:]
    start = _job_start(words)
    arguments, launcher_options = parser.parse_known_args(words[:start])
    job = words[start:]
    if not job:
        parser.error("expected train, eval, verify, or a script such as tools/train.py")
    if problem := host_problem(launcher_options):
        parser.error(problem)
    restarts = 0 if job[0] in _SINGLE_VERBS else arguments.restarts
    if job[0] in _PARALLEL_VERBS:
        job = [_PROGRAM, *job]
    if arguments.trust:
        job = [*job, "--trust"]
    return Supervisor(
        lambda resume: launch_command(launcher_options, job, resume=resume),
        restarts,
        pause=arguments.pause,
    ).run()


def _job_start(words: Sequence[str]) -> int:
    """Returns the index of the script or verb; the number of words if there is none.

    The value of an option, such as ``train`` in ``--job_id train``, is not a verb.
    """
    for index, word in enumerate(words):
        previous_word = words[index - 1] if index else ""
        is_value = previous_word.startswith("--") and "=" not in previous_word and previous_word != "--trust"
        if word.endswith(".py") or (word in _PARALLEL_VERBS and not is_value):
            return index
    return len(words)
