"""Export: ``python tools/export_model.py -c FILE -o Global.pretrained_model=WEIGHTS -o Global.save_inference_dir=DIR``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ppxcls
from ppxcls import cli


def main() -> None:
    arguments = cli.parse_arguments(
        "Write files of Paddle Inference and ONNX, and compare each with the network on real images.",
        {
            "--format": {"choices": ["paddle", "onnx", "both"], "default": "both"},
            "--logits": {"action": "store_true", "help": "give logits instead of probabilities"},
            "--float-input": {"action": "store_true", "help": "take normalised float32 [N, 3, H, W] instead of uint8 [N, H, W, 3]"},
            "--fold": {"action": "store_true", "help": "fold batch norms into convolutions"},
        },
    )
    config = cli.load_config(arguments)
    formats = ["paddle", "onnx"] if arguments.format == "both" else [arguments.format]
    ppxcls.export(config, formats, not arguments.logits, not arguments.float_input, arguments.fold)
    print(f"written to {config.Global.save_inference_dir}")


if __name__ == "__main__":
    cli.run(main)
