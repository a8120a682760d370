#!/usr/bin/env bash
# Installs the requirements of the tests, then lints, checks types and runs the tests:
#
#   bash scripts/test.sh                     # main job under older Paddles and other Pythons, whole suite under the newest
#   bash scripts/test.sh PYTEST_ARGUMENTS    # a part of the suite, under the newest Paddle only
#
# The main job runs under Paddle 2.6 with Python 3.10, Paddle 3.0 with 3.12, and the newest Paddle with 3.13. If
# one of these Pythons is not installed, an older Paddle takes another one. The output says which ones ran.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh

main_job() {  # PYTHON FOLDER REQUIREMENT
    local PYTHON=$1
    use_environment cpu,test,export "$2" "$3"
    echo "The main job with $(python --version) and $3"
    # Only files with such tests, because the import of all others takes longer than some of these tests.
    python -m pytest -m "every_paddle and not slow" $(grep -rl --include="test_*.py" "mark.every_paddle" tests | sort)
}

logs=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$logs"' EXIT
names=()
start_main_job() {  # NAME FOLDER REQUIREMENT PYTHON_VERSION...
    local name=$1 folder=$2 requirement=$3 python
    shift 3
    if python=$(find_python "$@"); then
        echo "main job with $requirement: Python $(python_version "$python"), $python"
        main_job "$python" "$folder" "$requirement" > "$logs/$name" 2>&1 &
        echo $! > "$logs/$name.pid"
        names+=("$name")
    else
        echo "no main job with $requirement, because Python $* is not installed"
    fi
}

if [ $# = 0 ]; then  # in the background, while the newest Paddle is installed
    start_main_job 2.6 .venv-paddle-2.6 "paddlepaddle==2.6.*" 3.10 3.11 3.12
    start_main_job 3.0 .venv-paddle-3.0 "paddlepaddle==3.0.*" 3.12 3.11 3.10 3.13
    start_main_job 3.13 .venv-python-3.13 paddlepaddle 3.13
fi
use_environment cpu,test,export
echo "the newest Paddle, whole suite: $(python --version), $(command -v python)"
ruff check .
ruff check ppxcls tools --select C901 --exit-zero --output-format concise
ruff format --check .
mypy
if [ $# = 0 ]; then
    for name in ${names[@]+"${names[@]}"}; do
        wait "$(cat "$logs/$name.pid")" && code=0 || code=$?
        cat "$logs/$name"
        [ $code = 0 ] || exit $code
    done
    # In parallel, and one more than cores, because tests often wait for processes.
    cores=$(getconf _NPROCESSORS_ONLN)
    set -- --numprocesses $((cores < 3 ? cores + 1 : 4)) --dist worksteal
fi
python -m pytest "$@"
