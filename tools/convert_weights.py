"""Convert weights: ``python tools/convert_weights.py SOURCE --model xception65 -o xception65.pdparams``."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ppxcls
from ppxcls import cli


def main() -> None:
    parser = argparse.ArgumentParser(description="Weights of timm, Keras or this package to .pdparams or .safetensors.")
    parser.add_argument("source", help=".safetensors, .pth, .weights.h5, .keras or .pdparams")
    parser.add_argument("--model", required=True, help="the network, such as xception65")
    parser.add_argument("--class-num", type=int, default=1000)
    parser.add_argument("-o", "--output", required=True, help=".pdparams or .safetensors")
    arguments = parser.parse_args()
    count = ppxcls.convert_weights(arguments.source, arguments.model, arguments.output, arguments.class_num)
    print(f"{count} tensors, every key and shape as {arguments.model} has them, written to {arguments.output}")


if __name__ == "__main__":
    cli.run(main)
