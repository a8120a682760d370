"""The verb ``weights``: lists published weights, and fetches them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import ppxcls
from ppxcls import cli
from ppxcls.system.json_text import json_text
from ppxcls.system.logs import set_up_logging

if TYPE_CHECKING:
    from ppxcls.published.find import ListedWeights  # needs numpy, which --help must not import


def run_weights(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``weights``, parses them, and lists or fetches."""
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="weights to fetch: a name of the list, a network, imagenet, hf-hub:OWNER/REPO, or an address; "
        "without it, the list is printed",
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    arguments = parser.parse_args()
    if arguments.name is not None and arguments.json:
        parser.error("expected NAME or --json, received both")
    if arguments.name is not None:
        set_up_logging(stream=sys.stderr)
        cli.print_line(str(ppxcls.fetch_weights(arguments.name)))
        return
    rows = ppxcls.list_weights()
    if arguments.json:
        print(json_text([_facts(row) for row in rows], indent=1))
        return
    print(f"{'name':<24}{'network':<20}{'top-1':<8}{'MB':>4}  {'licence':<14}{'cached':<8}source")
    for row in rows:
        cli.print_line(_line(row))
    print("\n'ppxcls weights NAME' fetches one. fit --weights NAME and Arch.pretrained: NAME do so too.")


def _line(row: ListedWeights) -> str:
    entry = row.weights
    top1 = f"{entry.top1:.4f}" if entry.top1 is not None else "trunk"
    is_cached = "yes" if row.path else "no"
    return (
        f"{entry.name:<24}{entry.network:<20}{top1:<8}{entry.megabytes:>4}  {entry.licence:<14}"
        f"{is_cached:<8}{entry.publisher}, {entry.source}"
    )


def _facts(row: ListedWeights) -> dict[str, object]:
    entry = row.weights
    return {
        "name": entry.name,
        "network": entry.network,
        "publisher": entry.publisher,
        "source": entry.source,
        "licence": entry.licence,
        "top1": entry.top1,
        "top5": entry.top5,
        "megabytes": entry.megabytes,
        "sha256": entry.sha256,
        "md5": entry.md5,
        "has_classifier": entry.has_classifier,
        "path": str(row.path) if row.path else None,
    }
