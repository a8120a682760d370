#!/usr/bin/env bash
# Installs ppxcls on a machine with Python 3.10+, then trains and evaluates Xception41 on the CPU:
#
#   bash scripts/quickstart.sh [-o KEY.KEY=VALUE ...]
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh

# If Paddle is installed in the active environment, it is kept.
if [ -n "${VIRTUAL_ENV:-}" ] && python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("paddle") is None)'; then
    use_environment quickstart
else
    use_environment cpu,quickstart
fi
python scripts/make_digits.py dataset/digits
python tools/train.py -c configs/quickstart.yaml "$@"
python tools/eval.py -c configs/quickstart.yaml "$@"
python -m ppxcls report output/quickstart/Xception41
python - <<'PY'
import json
from pathlib import Path

folder = Path("output/quickstart/Xception41")
results = json.loads((folder / "eval.json").read_text())
print(f"""
held-out top-1: {results["top1"]:.4f}   top-5: {results["top5"]:.4f}   ({results["num_samples"]} images)
weights: {folder}/best_model.pdparams
report:  {folder}/report.html, and visualdl --logdir {folder}/vdl
log:     {folder}/train.log, {folder}/metrics.jsonl""")
PY
