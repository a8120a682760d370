"""Paddle's launcher with restarts: ``python tools/launch.py --restarts 10 --gpus 0,1 tools/train.py -c FILE``."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppxcls.system.supervisor import Supervisor, host_problem


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run a job under paddle.distributed.launch, and restart it from its newest checkpoint if it fails.",
        epilog="All other arguments are the launcher's: --gpus, --devices, --nnodes, --master, --host, and the script.",
        allow_abbrev=False,
    )
    parser.add_argument("--restarts", type=int, default=10, help="in a row; failures after ten minutes are counted anew")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds before the first restart, doubled each time")
    script = next((i for i, word in enumerate(sys.argv) if i and word.endswith(".py")), len(sys.argv))  # the rest is its own
    arguments, launcher = parser.parse_known_args(sys.argv[1:script])
    launcher += sys.argv[script:]
    if script == len(sys.argv):
        parser.error("expected a script, such as tools/train.py")
    if (problem := host_problem(launcher)) is not None:
        parser.error(problem)
    command = [sys.executable, "-m", "paddle.distributed.launch", *launcher]
    return Supervisor(command, ["-o", "Global.checkpoints=auto"], arguments.restarts, arguments.pause).run()


if __name__ == "__main__":
    sys.exit(main())
