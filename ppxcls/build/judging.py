"""The images that judge a finished model, ``DataLoader.Test``, and how often they have done so."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppxcls.build import TEST_EVALUATION, TEST_TTA_EVALUATION
from ppxcls.build.start import required_section
from ppxcls.checkpoints.progress import checkpoint_prefix
from ppxcls.config.checks import ConfigPlace
from ppxcls.config.registry import Block
from ppxcls.config.sections import Config
from ppxcls.data.dataset import DATASETS, ImageNetDataset
from ppxcls.system.atomic_files import read_regular
from ppxcls.system.json_text import is_count, is_number, read_json
from ppxcls.system.logs import logger

_MAX_RESULT_BYTES = 1 << 20
_MAX_MANIFEST_BYTES = 1 << 24
_MAX_USES = 1_000_000
_MAX_IMAGES = 1 << 40
_PLACE_KEYS = ("pack", "cache_dir", "cache_gb")  # of a packed data set, which the list replaces
_EARLIER_FOLDER = re.compile(r"earlier_\d{1,9}")


def judging_config(config: Config) -> Config:
    """Returns a config whose evaluation data are the images of ``DataLoader.Test``.

    They are prepared and loaded as those of ``DataLoader.Eval``.

    Raises:
        ConfigError: one of the two sections is missing.
    """
    test = required_section(config, "DataLoader.Test")
    evaluation = required_section(config, "DataLoader.Eval")
    assert config.DataLoader
    root = test.image_root
    has_root = root is not None or evaluation.dataset.arguments.get("image_root")
    if not has_root and takes_root(evaluation.dataset):
        raise config.where("DataLoader.Test.image_root").error(
            "the key is missing, and DataLoader.Eval.dataset has none either"
        )
    return with_evaluation_list(config, test.cls_label_path, root, where=config.where("DataLoader.Test"))


def with_evaluation_list(config: Config, path: str, root: str | None, *, where: ConfigPlace) -> Config:
    """Returns a config whose evaluation data are the images of another list.

    They are prepared and loaded as those of ``DataLoader.Eval``.

    Args:
        config: config with ``DataLoader.Eval``.
        path: list of the images.
        root: folder that the list's paths are relative to; None for that of ``DataLoader.Eval``.
        where: place of the list, for messages.

    Raises:
        ConfigError: the data set of ``DataLoader.Eval`` is of a kind without lists, or without a folder.
    """
    assert config.DataLoader
    assert config.DataLoader.Eval
    evaluation = config.DataLoader.Eval
    block: Block = evaluation.dataset
    arguments = {key: value for key, value in block.arguments.items() if key not in _PLACE_KEYS}
    arguments["cls_label_path"] = path
    if root is not None:
        arguments["image_root"] = root
    name = _kind_of_lists(block)
    for key in ("cls_label_path", "image_root"):
        if key in arguments and key not in DATASETS.schema(name):
            raise where.error(
                f"expected a data set of a list in DataLoader.Eval, received {name}, which has no key {key}"
            )
    dataset = Block(
        block.kind,
        name,
        arguments=arguments,
        where=where,
        is_list_item=block.is_list_item,
    )
    new_config = copy.copy(config)
    new_config.DataLoader = replace(config.DataLoader, Eval=replace(evaluation, dataset=dataset))
    return new_config


def takes_root(block: Block) -> bool:
    """True if the data set that reads a list in the place of another one has a folder of images.

    Args:
        block: data set of ``DataLoader.Eval``.
    """
    return "image_root" in DATASETS.schema(_kind_of_lists(block))


def _kind_of_lists(block: Block) -> str:
    return ImageNetDataset.__name__ if "pack" in block.arguments else block.name


def use_of_test(folder: Path, weights: str, *, list_digest: str) -> dict[str, Any]:
    """Returns what ``test.json`` says about one use of the images that judge, and logs a later use.

    Args:
        folder: run folder.
        weights: weights that were judged.
        list_digest: digest of the list.

    Returns:
        ``uses``: how often the list has judged a model of this folder. Models that a later training moved to
        ``earlier_1`` and so on count too. ``checkpoint``: digest of the weights' manifest.
    """
    uses = 1 + max((_uses(file, list_digest) for file in _result_files(folder)), default=0)
    if uses > 1:
        logger.warning(
            f"these images have now judged {uses} times: a choice between models by such figures makes them "
            "too high"
        )
    return {"uses": uses, "checkpoint": checkpoint_digest(checkpoint_prefix(weights))}


def checkpoint_digest(prefix: Path) -> str | None:
    """Returns the SHA-256 of a checkpoint's manifest, which differs for each checkpoint; None without one."""
    with contextlib.suppress(OSError, ValueError):
        return hashlib.sha256(read_regular(Path(f"{prefix}.json"), _MAX_MANIFEST_BYTES)).hexdigest()
    return None


def _result_files(folder: Path) -> Iterator[Path]:
    names = (TEST_EVALUATION, TEST_TTA_EVALUATION)
    yield from (folder / name for name in names)
    with contextlib.suppress(OSError):
        for child in folder.iterdir():
            if _EARLIER_FOLDER.fullmatch(child.name):
                yield from (child / name for name in names)


def judged_note(prefix: Path) -> str | None:
    """Returns the top-1 accuracy of a checkpoint on the images that judge, as text; None if there is none.

    Args:
        prefix: prefix of the checkpoint's files, in its run folder.
    """
    values = _values(prefix.parent / TEST_EVALUATION)
    top1: Any = values.get("top1")
    count: Any = values.get("num_samples")
    if not is_number(top1) or not 0 <= top1 <= 1 or not is_number(count) or not 0 < count <= _MAX_IMAGES:
        return None
    return f"top1 {top1:.4g} on {count:,.0f} images that judge" if is_judged(prefix) else None


def is_judged(prefix: Path) -> bool:
    """True if the images that judge have judged a checkpoint.

    Args:
        prefix: prefix of the checkpoint's files, in its run folder.
    """
    digest = checkpoint_digest(prefix)
    return digest is not None and _values(prefix.parent / TEST_EVALUATION).get("checkpoint") == digest


def _uses(file: Path, list_digest: str) -> int:
    """Returns how often a list has been used, by a file of results; 0 if the file is missing or damaged."""
    values = _values(file)
    uses: Any = values.get("uses")
    return int(uses) if values.get("list") == list_digest and is_count(uses, _MAX_USES) else 0


def _values(file: Path) -> dict[str, Any]:
    """Returns the content of ``test.json``; empty if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        values = read_json(read_regular(file, _MAX_RESULT_BYTES), is_nan_null=True)
        if isinstance(values, dict):
            return values
    return {}
