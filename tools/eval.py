"""Evaluate: ``python tools/eval.py -c configs/Xception41.yaml -o Global.pretrained_model=output/Xception41/best_model``."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ppxcls
from ppxcls import cli
from ppxcls.logger import format_figures, logger


def main() -> None:
    arguments = cli.parse_arguments("Evaluate the weights of Global.pretrained_model, or the run's best_model: top-1, top-5, loss.")
    config = ppxcls.load_config(arguments.config, arguments.override)
    if arguments.print_config:
        print(config.to_yaml())
    results = ppxcls.evaluate(config)
    from ppxcls import distributed

    if distributed.rank() == 0:
        file = Path(config.Global.output_dir) / config.Arch.name / "eval.json"
        weights = str(config.Global.pretrained_model or file.with_name("best_model"))
        file.write_text(json.dumps({"weights": weights, **results}, indent=1) + "\n", encoding="utf-8")
        figures = format_figures({k: v for k, v in results.items() if k != "num_samples"})
        logger.info(f"[Eval][Avg]{figures}, samples: {results['num_samples']} (written to {file})")


if __name__ == "__main__":
    cli.run(main)
