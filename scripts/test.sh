#!/usr/bin/env bash
# Install what the tests need, then lint, type check and test:
#
#   bash scripts/test.sh                     # all: the main job under the older Paddles, then the whole suite under the newest
#   bash scripts/test.sh PYTEST_ARGUMENTS    # a part of the suite under the newest Paddle alone
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh

if [ $# = 0 ]; then
    for version in 2.6 3.0; do
        (
            use_environment "cpu,test,$([ $version = 2.6 ] && echo export-paddle2 || echo export)" ".venv-paddle-$version" "paddlepaddle==$version.*"
            echo "The main job under Paddle $version"
            python -m pytest -m "every_paddle and not slow"
        )
    done
fi

use_environment cpu,test,export
ruff check .
ruff format --check .
mypy
python -m pytest "$@"
