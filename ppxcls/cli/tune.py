"""The verb ``tune``: searches for the values of keys."""

from __future__ import annotations

import argparse
import shlex

import ppxcls
from ppxcls import cli
from ppxcls.system.supervisor import host_problem


def run_tune(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``tune``, parses them, searches, and prints the result."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=RANGE",
        dest="ranges",
        help="key to search, with loguniform(a,b), uniform(a,b), int(a,b) or choice(x,y,...); repeatable",
    )
    parser.add_argument(
        "--trials", type=int, default=20, metavar="N", help="trials of the whole study (default: 20)"
    )
    parser.add_argument(
        "--hours",
        type=float,
        metavar="H",
        help="save the running trial and end after H hours (default: never)",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder of the study (default: tune in Global.output_dir)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the search (default: 0)")
    parser.add_argument("--no-prune", action="store_true", help="end no trial early")
    parser.add_argument(
        "--launch",
        default="",
        metavar="OPTIONS",
        help="run each trial in several processes: options of paddle.distributed.launch in quotes, such as "
        "'--gpus 0,1'",
    )
    arguments = cli.parse_with_config(parser)
    try:
        launcher = shlex.split(arguments.launch)
    except ValueError as error:  # such as a quote without its end
        parser.error(f"--launch {arguments.launch!r}: {error}")
    if problem := host_problem(launcher):
        parser.error(problem)
    cli.read_config(arguments)
    result = ppxcls.tune(
        arguments.config,
        arguments.ranges,
        trials=arguments.trials,
        hours=arguments.hours,
        output=arguments.output,
        overrides=arguments.override,
        launcher=launcher,
        seed=arguments.seed,
        prune=not arguments.no_prune,
        trust=arguments.trust,
    )
    counts = ", ".join(f"{count} {state}" for state, count in result.counts.items() if count)
    values = " ".join(result.overrides)
    figure = f"{result.metric} {result.figure:.5f}"
    cli.print_line(f"best trial: {result.trial} ({figure}) with {values}; trials: {counts}")
    cli.print_line(
        f"to use it: ppxcls infer -c {result.run} IMAGES; to train with its values: ppxcls train -c "
        f"{result.config}; to compare the trials: ppxcls report {result.folder}"
    )
