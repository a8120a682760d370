"""List files from folders of images: ``python tools/make_lists.py PICTURES -o dataset/NAME``."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ppxcls
from ppxcls import cli


def main() -> None:
    parser = argparse.ArgumentParser(description="One folder a class to train_list.txt, val_list.txt and class_names.txt.")
    parser.add_argument(
        "folder", help="its folders are the classes; or train/, val/ and test/ with such folders; or a flat val/ with --labels"
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="where the lists go; the images stay where they are")
    parser.add_argument("--val-share", type=float, default=0.2, help="of each class for evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labels", metavar="FILE", help="of a flat folder: a label for each file in order of names, a line each")
    arguments = parser.parse_args()
    print(ppxcls.make_lists(arguments.folder, arguments.output, arguments.val_share, arguments.seed, arguments.labels))


if __name__ == "__main__":
    cli.run(main)
