"""Check the data of a YAML: ``python tools/check_data.py -c configs/Xception41.yaml --json report.json``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppxcls import cli
from ppxcls.cli import verbs

if __name__ == "__main__":
    cli.run(verbs.check)
