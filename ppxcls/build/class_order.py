"""Finds the names of a network's classes and of a list's classes, in the order of their ids.

A list and a network agree on the meaning of a label if both have names and the names are the same. Otherwise
the labels of the list are mapped by name. If one side has no names, there is nothing to compare.
"""

from __future__ import annotations

import contextlib
from functools import cache
from pathlib import Path
from typing import Any

from ppxcls.checkpoints.files import CheckpointError, is_complete, read_manifest
from ppxcls.checkpoints.progress import checkpoint_prefix
from ppxcls.checkpoints.run_folder import RunFolder
from ppxcls.config.checks import ConfigError
from ppxcls.config.load import RUN_CONFIG, is_config_of_run
from ppxcls.config.sections import Config
from ppxcls.config.yaml_values import read_yaml
from ppxcls.data.class_names import (
    CLASS_NAMES_FILE,
    IMAGENET_NAMES_FILE,
    PADDLEX_NAMES_FILE,
    read_class_names,
)
from ppxcls.data.errors import DataError
from ppxcls.data.label_mapping import ClassNames, LabelMapping, label_mapping
from ppxcls.models.weights import manifest_of, weights_file
from ppxcls.packed.dataset import pack_folder
from ppxcls.system.atomic_files import read_regular
from ppxcls.system.logs import logger, warn_once
from ppxcls.system.paths import printable, url_problem

_MAX_YAML_BYTES = 1 << 20
_MAX_NAMES = 10_000_000


def list_classes(config: Config, mode: str) -> ClassNames | None:
    """Returns the classes of a list or a pack: ``class_names.txt`` in its folder; None without this file.

    Args:
        config: config of the data set.
        mode: ``Train`` or ``Eval``.

    Raises:
        DataError: the file can't be used.
    """
    folder = list_folder(config, mode)
    return None if folder is None else classes_beside(folder)


def list_folder(config: Config, mode: str) -> Path | None:
    """Returns the folder of a list or a pack; None if the data set is of another kind, or is missing."""
    section = getattr(config.DataLoader, mode) if config.DataLoader else None
    dataset = section.dataset if section else {}
    if dataset.get("cls_label_path"):
        return Path(dataset["cls_label_path"]).parent
    return pack_folder(dataset["pack"], dataset.get("cache_dir")) if dataset.get("pack") else None


def classes_beside(folder: Path) -> ClassNames | None:
    """Returns the classes of the lists in a folder; None if it has no file of names.

    The file is ``class_names.txt``, or ``labels.txt`` as PaddleX writes it.

    Raises:
        DataError: the file can't be used.
    """
    for file in (folder / CLASS_NAMES_FILE, folder / PADDLEX_NAMES_FILE):
        if file.is_file():
            return ClassNames(tuple(read_class_names(file, None)), str(file))
    return None


def weights_classes(path: str | Path) -> ClassNames | None:
    """Returns the classes of a network, by its weights; None if they are not known.

    The names are in ``class_names.txt`` of the run's folder, and in the manifest of the checkpoint, which may
    have been copied to another folder.

    Args:
        path: weights file; the extension may be omitted.

    Raises:
        DataError: ``class_names.txt`` can't be used.
    """
    if url_problem(path) is not None:
        return None
    prefix = weights_file(path).with_suffix("")
    try:
        manifest = read_manifest(prefix)
    except CheckpointError:
        manifest = {}
    return _checkpoint_classes(prefix, manifest)


def manifest_beside(file: Path) -> dict[str, Any]:
    """Returns the manifest beside a weights file; empty if there is none or it is damaged."""
    try:
        return manifest_of(file) or {}
    except CheckpointError:
        return {}  # loading the weights reports the error


def config_of_weights(path: str | Path) -> dict[str, Any] | None:
    """Returns the resolved config of the run that trained some weights, as plain values; None if unknown.

    It is in the manifest of the checkpoint, otherwise in ``config.yaml`` of the run's folder. Weights of
    another source have none.

    Args:
        path: weights file; the extension may be omitted.
    """
    if url_problem(path) is not None:
        return None
    prefix = weights_file(path).with_suffix("")
    run_config = prefix.parent / RUN_CONFIG
    try:
        manifest = read_manifest(prefix)
        values = read_yaml(manifest["config"], f"{prefix}.json")
    except (CheckpointError, ConfigError, KeyError, TypeError):
        values = None
        if is_config_of_run(run_config, is_header_required=True):
            with contextlib.suppress(ConfigError, OSError, ValueError):
                values = read_yaml(read_regular(run_config, _MAX_YAML_BYTES).decode(), str(run_config))
    return values if isinstance(values, dict) else None


def run_classes(config: Config) -> ClassNames | None:
    """Returns the classes of the run in the config's folder, if the config is the run's own ``config.yaml``.

    Raises:
        DataError: ``class_names.txt`` can't be used.
    """
    return None if config.own_folder is None else classes_beside(config.own_folder)


def training_classes(config: Config) -> ClassNames | None:
    """Returns the classes of a network that is trained; None if they have no names.

    They are those of the checkpoint that the run resumes; otherwise those of the training list; otherwise
    those of the run whose ``config.yaml`` is used.

    Raises:
        DataError: a file of names can't be used.
    """
    return _resumed_classes(config) or list_classes(config, "Train") or run_classes(config)


def mapping_to(network_classes: ClassNames | None, config: Config, mode: str) -> LabelMapping | None:
    """Returns the mapping from the labels of a data set to the network's classes; None if they agree.

    Args:
        network_classes: classes of the network; None if they are not known.
        config: config of the data set.
        mode: ``Train`` or ``Eval``.

    Raises:
        DataError: the file of names of the training list can't be used. An evaluation goes on without it.
    """
    if network_classes is None:
        return None
    try:
        classes = list_classes(config, mode)
    except DataError as error:
        if mode == "Train":
            raise
        warn_once(f"{error}; the labels are used by number")
        return None
    if classes is None:
        if not is_imagenet(network_classes):
            logger.info(f"{list_folder(config, mode)}: no {CLASS_NAMES_FILE}, so labels are used by number")
        return None
    return mapping_between(classes, network_classes)


def mapping_between(classes: ClassNames, network_classes: ClassNames) -> LabelMapping | None:
    """Returns the mapping from the classes of a list to those of a network; None if they agree.

    A run of a list without names has ImageNet's names if it has 1,000 classes. Nobody has confirmed them. So
    they are not compared with names that have none of them, such as WordNet ids.
    """
    if is_imagenet(network_classes) and not set(classes.names) & set(network_classes.names):
        return None
    return label_mapping(classes, network_classes)


def is_imagenet(classes: ClassNames) -> bool:
    """True if the names are ImageNet's, which a run has if it has 1,000 classes and its list has no names."""
    return classes.names == _imagenet_names()


def imagenet_classes(path: str | Path) -> ClassNames:
    """Returns ImageNet's classes as those of weights without names.

    Args:
        path: weights file, for messages.
    """
    return ClassNames(_imagenet_names(), f"ImageNet's names, which {path} should have")


@cache
def _imagenet_names() -> tuple[str, ...]:
    return tuple(read_class_names(IMAGENET_NAMES_FILE, None))


def _resumed_classes(config: Config) -> ClassNames | None:
    """Returns the classes of the checkpoint that the run resumes; None if there is none."""
    path = config.Global.checkpoints
    if not path or url_problem(path) is not None:
        return None
    if path == "auto":
        checkpoints = RunFolder(config.run_folder).checkpoints()[0] if config.run_folder.is_dir() else []
        newest = next((item for item in checkpoints if is_complete(item[1])), None)
        return _checkpoint_classes(*newest) if newest else None
    prefix = checkpoint_prefix(path)
    with contextlib.suppress(CheckpointError):  # reading the checkpoint reports the error
        return _checkpoint_classes(prefix, read_manifest(prefix))
    return None


def run_id(folder: Path) -> str | None:
    """Returns the id of the run in a folder, by its last checkpoint; None if it is not known."""
    value = manifest_beside(folder / "latest.pdparams").get("run")
    return None if value is None else str(value)


def _checkpoint_classes(prefix: Path, manifest: dict[str, Any]) -> ClassNames | None:
    """Returns the classes in the folder of a checkpoint, or else in its manifest.

    If a user has renamed classes in the folder, the names in the manifest are alternatives. But if the folder
    has the same names in another order, or belongs to another run, its file is of another list.
    """
    names = manifest.get("class_names")
    is_valid = isinstance(names, list) and 0 < len(names) < _MAX_NAMES
    manifest_names = tuple(printable(str(name)) for name in names) if is_valid and names else ()
    # Weights may be copied with their manifest to a folder with a YAML and names of another list.
    is_run_folder = is_config_of_run(prefix.parent / RUN_CONFIG, is_header_required=bool(manifest_names))
    folder_classes = classes_beside(prefix.parent) if is_run_folder else None
    if folder_classes is None:
        return ClassNames(manifest_names, f"{prefix}.json") if manifest_names else None
    if len(manifest_names) != len(folder_classes.names) or manifest_names == folder_classes.names:
        return folder_classes
    is_same_set = sorted(manifest_names) == sorted(folder_classes.names)
    if is_same_set or run_id(prefix.parent) not in (None, manifest.get("run")):
        return ClassNames(manifest_names, f"{prefix}.json")
    return ClassNames(folder_classes.names, folder_classes.source, alternatives=(manifest_names,))
