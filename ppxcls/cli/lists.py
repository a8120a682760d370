"""The verb ``lists``: writes list files, or applies corrections to them. Also options for tables."""

from __future__ import annotations

import argparse
from typing import Any

import ppxcls
from ppxcls.system.output_paths import check_output_folder

_SPLIT_OPTIONS = ("val_share", "test_share", "seed")
_TABLE_OPTIONS = ("image", "label", "split", "group", "image_root")


def add_table_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the columns of a table, and for groups."""
    parser.add_argument(
        "--group",
        metavar="REGEX|COLUMN",
        help="keep images of one group, such as a patient or a video, in one list: a regular expression with "
        "one pair of parentheses that finds the group in an image's path, such as 'patient_([0-9]+)', or a "
        "column of the table",
    )
    for name, words in (
        ("image", "column of the images' paths"),
        ("label", "column of the labels"),
        ("split", "column with the words train, val and test"),
    ):
        parser.add_argument(
            f"--{name}", metavar="COLUMN", help=f"for a table: {words} (default: one with a usual name)"
        )
    parser.add_argument(
        "--image-root",
        metavar="DIR",
        help="for a table: folder to which the paths are relative (default: the folder of the table)",
    )


def table_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the values of the options for tables, by name."""
    return {name: getattr(arguments, name) for name in _TABLE_OPTIONS}


def _add_split_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that tell which images are held out."""
    parser.add_argument(
        "--val-share",
        type=float,
        default=0.2,
        metavar="FRACTION",
        help="fraction of each class held out for evaluation (default: 0.2)",
    )
    parser.add_argument(
        "--test-share",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="fraction of each class that judges the result, if there is neither test/ nor val/; above 0, "
        "val/ without test/ judges, and the evaluation list is held out from train/ (default: 0)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    parser.add_argument(
        "--folds",
        type=int,
        default=0,
        metavar="K",
        help="write the lists of a cross-validation to fold_1/ to fold_K/; each image is in one val_list.txt",
    )


def run_lists(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``lists``, parses them, and writes the lists."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder with one subfolder per class; or train/, val/ and test/ with such subfolders; or a "
        "flat val/ with --labels; or a table in CSV with a row for each image",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="folder for the lists; the images stay in place (with --apply: the new list or folder; default: "
        "beside the old one)",
    )
    _add_split_options(parser)
    add_table_options(parser)
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="for a flat folder: a file with one label per line, in file-name order",
    )
    parser.add_argument(
        "--apply",
        metavar="CORRECTIONS",
        help="SOURCE is a list or a folder of lists: write it with the corrected labels of this table",
    )
    arguments = parser.parse_args()
    if arguments.apply:
        if _is_given(parser, arguments, "labels", "folds", *_SPLIT_OPTIONS, *_TABLE_OPTIONS):
            parser.error("expected --apply with SOURCE and perhaps --output, received other options too")
        _apply(arguments)
        return
    if not arguments.output:
        parser.error("the following arguments are required: -o/--output")
    if arguments.labels and _is_given(parser, arguments, "folds", *_SPLIT_OPTIONS, *_TABLE_OPTIONS):
        parser.error("expected --labels with SOURCE and --output, received other options too")
    check_output_folder(arguments.output)
    print(
        ppxcls.make_lists(
            arguments.source,
            arguments.output,
            val_share=arguments.val_share,
            test_share=arguments.test_share,
            seed=arguments.seed,
            labels=arguments.labels,
            folds=arguments.folds,
            **table_options(arguments),
        )
    )


def _is_given(parser: argparse.ArgumentParser, arguments: argparse.Namespace, *names: str) -> bool:
    """True if one of these options has another value than its default."""
    return any(getattr(arguments, name) != parser.get_default(name) for name in names)


def _apply(arguments: argparse.Namespace) -> None:
    from ppxcls.data.corrections import apply_corrections

    print(apply_corrections(arguments.source, arguments.apply, arguments.output))
