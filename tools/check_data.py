"""Check the data of a YAML: ``python tools/check_data.py -c configs/Xception41.yaml --json report.json``."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ppxcls
from ppxcls import cli


def main() -> int:
    arguments = cli.parse_arguments(
        "Decode every listed file and look for copies, wrong labels and leaks.",
        {"--json": {"metavar": "FILE", "help": "write the report as JSON too"}},
    )
    config = cli.load_config(arguments)
    report = ppxcls.check_data(config)
    print(report)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return cli.EXIT_ERROR if report.errors else 0


if __name__ == "__main__":
    cli.run(main)
