"""Evaluate: ``python tools/eval.py -c configs/Xception41.yaml -o Global.pretrained_model=output/Xception41/best_model``."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ppxcls
from ppxcls import cli
from ppxcls.system.logs import logger


def main() -> None:
    arguments = cli.parse_arguments("Evaluate the weights of Global.pretrained_model, or the run's best_model: top-1, top-5, loss.")
    config = ppxcls.load_config(arguments.config, arguments.override)
    if arguments.print_config:
        print(config.to_yaml())
    results = ppxcls.evaluate(config)
    from ppxcls.build import weights_for
    from ppxcls.system import distributed
    from ppxcls.train.run_log import format_results

    if distributed.rank() == 0:
        file = config.run_folder / "eval.json"
        weights = weights_for(config, "evaluate")
        file.write_text(json.dumps({"weights": weights, **results}, indent=1) + "\n", encoding="utf-8")
        logger.info(f"[Eval][Avg]{format_results(results)} (written to {file})")


if __name__ == "__main__":
    cli.run(main)
