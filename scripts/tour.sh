#!/usr/bin/env bash
# Runs the main commands in a few minutes on the CPU: fit, report, infer, export, serve. Output: output/tour.
#
#   bash scripts/tour.sh [PHOTOS]        # default: scikit-learn's handwritten digits
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh

use_environment cpu,quickstart,report,serve
photos=${1:-dataset/digits}
output=output/tour
rm -rf $output
if [ $# = 0 ]; then
    python scripts/make_digits.py dataset/digits
fi
python -m ppxcls fit "$photos" --minutes 2 --output $output --device cpu
run=$(find $output -maxdepth 2 -name report.html -not -path '*/head/*' -printf '%h\n')
python -m ppxcls infer -c "$run" "$photos" --format csv --output $output/predictions_of_all.csv
head -n 3 $output/predictions_of_all.csv
python -m ppxcls export -c "$run" --format paddle -o Global.save_inference_dir=$output/inference
python -m ppxcls serve $output/inference --port 8765 &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
python - "$photos" <<'PY'
import json
import sys
import time
import urllib.error
import urllib.request

from ppxcls.deploy.images import find_images

data = open(find_images(sys.argv[1])[0], "rb").read()
for _ in range(300):  # until the server has started
    try:
        answer = urllib.request.urlopen("http://127.0.0.1:8765/predict", data).read()
        break
    except urllib.error.URLError:
        time.sleep(0.2)
print("the server says:", json.loads(answer))
PY
kill $server
wait $server || true
echo
echo "look at:  $run/report.html"
echo "serve:    ppxcls serve $output/inference, and open http://127.0.0.1:8000"
