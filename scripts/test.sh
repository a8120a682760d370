#!/usr/bin/env bash
# Installs the requirements of the tests, then lints, checks types and runs the tests:
#
#   bash scripts/test.sh                     # main job under the older Paddles, whole suite under the newest
#   bash scripts/test.sh PYTEST_ARGUMENTS    # a part of the suite, under the newest Paddle only
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh

main_job_under() {
    local version=$1
    use_environment "cpu,test,$([ "$version" = 2.6 ] && echo export-paddle2 || echo export)" ".venv-paddle-$version" "paddlepaddle==$version.*"
    echo "The main job under Paddle $version"
    python -m pytest -m "every_paddle and not slow"
}

logs=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$logs"' EXIT
if [ $# = 0 ]; then  # in the background, while the newest Paddle is installed
    for version in 2.6 3.0; do
        main_job_under $version > "$logs/$version" 2>&1 &
        echo $! > "$logs/$version.pid"
    done
fi
use_environment cpu,test,export
ruff check .
ruff check ppxcls tools --select C901 --exit-zero --output-format concise
ruff format --check .
mypy
if [ $# = 0 ]; then
    for version in 2.6 3.0; do
        wait "$(cat "$logs/$version.pid")" && code=0 || code=$?
        cat "$logs/$version"
        [ $code = 0 ] || exit $code
    done
    set -- --numprocesses auto --maxprocesses 4 --dist worksteal  # in parallel, because tests often wait for processes
fi
python -m pytest "$@"
