"""Paddle's launcher with restarts: ``python tools/launch.py --restarts 10 --gpus 0,1 tools/train.py -c FILE``."""

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppxcls.system.node_group import group_for
from ppxcls.system.supervisor import Supervisor, host_problem, launch_command, launcher_options


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run a job under paddle.distributed.launch, and restart it from its newest checkpoint if it fails.",
        epilog="All other arguments are the launcher's: --gpus, --devices, --nnodes, --master, --host, and the script.",
        allow_abbrev=False,
    )
    parser.add_argument("--restarts", type=int, default=10, help="in a row; failures after ten minutes are counted anew")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds before the first restart, doubled each time")
    parser.add_argument("--min-nodes", type=int, help="go on with so few of --nnodes; needs --master, and uses the port above its")
    parser.add_argument("--join-timeout", type=float, default=120.0, help="seconds for which missing nodes are waited for")
    script = next((i for i, word in enumerate(sys.argv) if i and word.endswith(".py")), len(sys.argv))
    arguments, launcher = parser.parse_known_args(sys.argv[1:script])
    own = sys.argv[script:]  # the script and its arguments
    if problem := host_problem(launcher) if own else "expected a script, such as tools/train.py":
        parser.error(problem)
    group = None
    if arguments.min_nodes is not None:
        try:
            group = group_for(launcher_options(launcher), arguments.min_nodes, arguments.join_timeout)
        except ValueError as error:
            parser.error(str(error))
    command = functools.partial(launch_command, launcher, own)
    return Supervisor(command, arguments.restarts, arguments.pause, group=group).run()


if __name__ == "__main__":
    sys.exit(main())
