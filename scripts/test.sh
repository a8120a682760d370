#!/usr/bin/env bash
# Installs the requirements of the tests, then lints, checks types and runs the tests:
#
#   bash scripts/test.sh                     # main job under older Paddles and other Pythons, whole suite under the newest
#   bash scripts/test.sh PYTEST_ARGUMENTS    # a part of the suite, under the newest Paddle only
#
# The main job runs under Paddle 2.6 with Python 3.10, Paddle 3.0 with 3.12, and the newest Paddle with 3.13. For
# the older Paddles, python3 takes the place of a Python that is not installed. The output says which ones ran.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh

main_job() {  # PYTHON FOLDER REQUIREMENT...
    local PYTHON=$1 folder=$2
    shift 2
    use_environment cpu,test,export "$folder" "$@"
    echo "The main job with $(python --version) and $*"
    python -m pytest -m "every_paddle and not slow"
}

logs=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$logs"' EXIT
jobs=()
start_main_job() {  # NAME PYTHON FOLDER REQUIREMENT...
    local name=$1
    shift
    main_job "$@" > "$logs/$name" 2>&1 &
    echo $! > "$logs/$name.pid"
    jobs+=("$name")
}

if [ $# = 0 ]; then  # in the background, while the newest Paddle is installed
    default=$(command -v python3)
    old=$(find_python 3.10) || { old=$default; echo "Python 3.10 is not installed: Paddle 2.6 runs under $old"; }
    new=$(find_python 3.12) || { new=$default; echo "Python 3.12 is not installed: Paddle 3.0 runs under $new"; }
    start_main_job 2.6 "$old" .venv-paddle-2.6 "paddlepaddle==2.6.*"
    start_main_job 3.0 "$new" .venv-paddle-3.0 "paddlepaddle==3.0.*"
    echo "Paddle 2.6: Python $(python_version "$old"), $old"
    echo "Paddle 3.0: Python $(python_version "$new"), $new"
    if newest=$(find_python 3.13); then
        start_main_job 3.13 "$newest" .venv-python-3.13 paddlepaddle
        echo "the newest Paddle: Python 3.13 too, $newest"
    else
        echo "Python 3.13 is not installed: the newest Paddle runs under one Python only"
    fi
fi
use_environment cpu,test,export
echo "the newest Paddle, whole suite: $(python --version), $(command -v python)"
ruff check .
ruff check ppxcls tools --select C901 --exit-zero --output-format concise
ruff format --check .
mypy
if [ $# = 0 ]; then
    for name in "${jobs[@]}"; do
        wait "$(cat "$logs/$name.pid")" && code=0 || code=$?
        cat "$logs/$name"
        [ $code = 0 ] || exit $code
    done
    set -- --numprocesses auto --maxprocesses 4 --dist worksteal  # in parallel, because tests often wait for processes
fi
python -m pytest "$@"
