#!/usr/bin/env bash
# Install what the tests need, then lint, type check and test: bash scripts/test.sh [pytest's arguments]
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
use_environment cpu,test

ruff check .
ruff format --check .
mypy
python -m pytest "$@"
