"""What a run is after training: weights, preparation of images, class names. Every tool asks here, and nowhere else."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ppxcls.checkpoints.files import CheckpointError, read_manifest, with_extension
from ppxcls.config.checks import ConfigError
from ppxcls.config.registry import Block
from ppxcls.config.sections import Config
from ppxcls.data.class_names import CLASS_NAMES, IMAGENET_NAMES, read_class_names
from ppxcls.data.dataset import Dataset
from ppxcls.models.common_keys import MODELS
from ppxcls.models.preprocessing import PreparedImages
from ppxcls.models.weights import weights_file
from ppxcls.system.logs import logger
from ppxcls.system.paths import url_problem
from ppxcls.system.whole_files import write_text

Purpose = Literal["train", "evaluate", "infer", "export"]

_SHOWN_NAMES = 5
_LEAST_SAMPLES = 50  # below that, good weights can score 0 by bad luck
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class Weights:
    """The weights that a config means for a purpose.

    Attributes:
        path: of the file; ``.pdparams`` may be left out.
        average: whether to take the average of the weights (EMA).
        is_own: whether they are the result of this config's run.
        note: what the line of a tool says about them, such as ``epoch 7, top1 0.91, averaged weights``.
    """

    path: str
    average: bool
    is_own: bool
    note: str

    def __str__(self) -> str:
        return f"{self.path} ({self.note})" if self.note else self.path


def class_num(config: Config) -> int:
    """The number of classes of the config's network: from ``Arch``, or the network's own default."""
    declared = inspect.signature(MODELS.get(config.Arch.name, config.where("Arch"))).parameters.get("class_num")
    if declared is None:
        message = f"the network {config.Arch.name} needs a parameter class_num, against which labels are checked"
        raise config.where("Arch.name").error(message)
    return int(config.Arch.get("class_num", declared.default))


def weights_for(config: Config, purpose: Purpose) -> Weights | None:
    """The weights that a config means; nothing else decides it.

    To train, they are the weights to start from: ``Global.pretrained_model``, or else ``Arch.pretrained``; None for fresh weights.
    For any other purpose, they are the first of these that exists:

    1. what the command line names, in either key;
    2. ``best_model`` of this config's run;
    3. ``latest`` of this config's run, with a warning;
    4. what the YAML names, in either key.

    The average of the weights is taken if the checkpoint has one, unless ``EMA.use_ema`` is false or the command line says
    ``EMA=null``.

    Raises:
        ConfigError: there is nothing to evaluate, infer with or export.
    """
    named = {
        "Global.pretrained_model": config.Global.pretrained_model,
        "Arch.pretrained": MODELS.common_keys(config.Arch).pretrained,
    }
    given = [path for key, path in named.items() if path and (purpose == "train" or config.is_override(key))]
    if True in given:
        raise _no_download(config)
    if given:
        return _weights(config, given[0])
    if purpose == "train":
        return None
    folder = config.trained_folder
    for name in ("best_model", "latest"):
        if weights_file(folder / name).exists() and _is_of_this_run(folder, name):
            if name == "latest":
                logger.warning(f"{folder}: no best_model, because no evaluation has chosen one; latest is used")
            return _weights(config, str(folder / name))
    for path in named.values():
        if path is True:
            raise _no_download(config)
        if path:
            return _weights(config, path)
    message = f"expected the weights to {purpose}, received null, and there is no {weights_file(folder / 'best_model')}"
    raise config.where("Global.pretrained_model").error(message)


def _no_download(config: Config) -> ConfigError:
    published = MODELS.published(config.Arch.name)
    place = f"; download {published.url} ({published.source})" if published and published.url else ""
    return config.where("Arch.pretrained").error(f"expected a file, received True{place}, and give its path")


def _weights(config: Config, path: str) -> Weights:
    if (problem := url_problem(path)) is not None:
        key = "Global.pretrained_model" if config.Global.pretrained_model == path else "Arch.pretrained"
        raise config.where(key).error(problem)
    manifest = _manifest(weights_file(path))
    has_average = ".pdema" in manifest.get("parts", {})
    wants_average = config.EMA.use_ema if config.EMA else not config.is_override("EMA")
    notes = []
    progress = manifest.get("progress", {})
    best = progress.get("best") or {}
    if progress:
        done = progress["epoch"] - (0 if progress["batches_done"] else 1)
        notes.append(f"epoch {done}" if not progress["batches_done"] else f"in epoch {done}, step {progress['step']}")
        if best and best["epoch"] == done:
            notes.append(f"{best['metric']} {best['value']:.4g}")
    average = has_average and wants_average
    if has_average:
        notes.append("averaged weights" if average else "raw weights")
    is_own = weights_file(path).resolve().parent == config.trained_folder.resolve()
    return Weights(path, average, is_own, ", ".join(notes))


def _manifest(file: Path) -> dict[str, Any]:
    """The manifest beside a file of weights; empty if there is none."""
    prefix = file.with_suffix("")
    try:
        return read_manifest(prefix) if with_extension(prefix, ".json").exists() else {}
    except CheckpointError:
        return {}  # loading the weights reports it


def _is_of_this_run(folder: Path, name: str) -> bool:
    """Whether a checkpoint belongs to the run of ``latest``, by their ids. Versions before 0.4.0 wrote none."""
    ids = [_manifest(weights_file(folder / part)).get("run") for part in (name, "latest")]
    if None in ids or ids[0] == ids[1]:
        return True
    logger.warning(f"{folder / name} belongs to another run than {folder / 'latest'} and is ignored")
    return False


def transforms_for(config: Config) -> list[Block]:
    """How images are prepared for prediction and export: as for the evaluation.

    ``Infer.transforms`` is used if the command line gives it, or if there is no evaluation. If the two differ, one line names the
    differences.

    Raises:
        ConfigError: there are neither.
    """
    own = config.Infer.transforms if config.Infer else []
    evaluation: list[Block] = []
    if config.DataLoader and config.DataLoader.Eval:
        evaluation = list(config.DataLoader.Eval.dataset.get("transform_ops") or [])
    if not own and not evaluation:
        raise config.where("Infer.transforms").error("the key is missing, and there is no DataLoader.Eval either")
    prefers_own = bool(own) and (not evaluation or config.is_override("Infer.transforms"))
    if own and evaluation and (found := PreparedImages.by(evaluation).differences(PreparedImages.by(own))):
        choice = "Infer.transforms is used" if prefers_own else "the evaluation's is used; -o Infer.transforms=... overrides it"
        logger.warning(f"DataLoader.Eval and Infer.transforms prepare images differently ({'; '.join(found)}): {choice}")
    used = own if prefers_own else evaluation
    _compare_with_image_shape(config, used)
    return used


def _compare_with_image_shape(config: Config, transforms: Sequence[Block]) -> None:
    shape, size = config.Global.image_shape, PreparedImages.by(transforms).size
    width, height = size if isinstance(size, tuple) else (size, size)
    if shape and size and shape[1:] != (height, width):
        logger.warning(f"Global.image_shape is {list(shape)}, but the images are prepared as {height} x {width}: they decide")


def class_names_for(config: Config) -> list[str]:
    """The names of the classes; empty if nothing gives them.

    In this order: a file that the command line names; ``class_names.txt`` of the run; that of the lists' folder; the file that the
    YAML names, unless it is ImageNet's and there are other classes; ImageNet's names for 1,000 classes.

    Raises:
        DataError: the file can't be used, or has not one name for each class.
    """
    count = class_num(config)
    if count == 0:
        return []
    process = config.Infer.PostProcess if config.Infer else None
    named = process.class_id_map_file if process else None
    if named and config.is_override("Infer.PostProcess.class_id_map_file"):
        return read_class_names(named, count)
    for folder in (config.trained_folder, *_list_folders(config)):
        if (folder / CLASS_NAMES).is_file():
            return read_class_names(folder / CLASS_NAMES, count)
    if named and (count == _IMAGENET_CLASSES or Path(named) != IMAGENET_NAMES):
        return read_class_names(named, count)
    return read_class_names(IMAGENET_NAMES, count) if count == _IMAGENET_CLASSES else []


def _list_folders(config: Config) -> list[Path]:
    sections = [config.DataLoader.Eval, config.DataLoader.Train] if config.DataLoader else []
    lists = [section.dataset.get("cls_label_path") for section in sections if section]
    return [Path(path).parent for path in lists if path]


def describe(config: Config, weights: Weights, transforms: Sequence[Block], names: Sequence[str]) -> str:
    """One line about what a tool uses: weights, preparation of the images, classes."""
    count = class_num(config)
    shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
    classes = f"{count:,} classes" + (f": {shown}" if names else "")
    return f"{config.Arch.name} with {weights}, {PreparedImages.by(transforms)}, {classes}"


def unused_classes_warning(dataset: Dataset, count: int) -> str | None:
    """A warning if the network has more classes than the labels of its training data; None if it has not."""
    largest = int(dataset.labels.max())
    if largest + 1 >= count:
        return None
    return f"Arch.class_num is {count:,}, but the labels of {dataset.source} end at {largest:,}: expected {largest + 1:,}?"


def chance_warning(results: Mapping[str, float], count: int) -> str | None:
    """A warning if weights from elsewhere score no better than chance; None if they do better or there are too few samples.

    The limit is three standard deviations above the expected share of correct guesses.
    """
    samples, top1 = results.get("num_samples", 0), results.get("top1")
    if top1 is None or count < 2 or samples < _LEAST_SAMPLES:
        return None
    chance = 1 / count
    if top1 > chance + 3 * math.sqrt(chance * (1 - chance) / samples):
        return None
    order = "ImageNet's, which sorts the WordNet ids" if count == _IMAGENET_CLASSES else "that of the weights"
    return f"top1 {top1:.4f} is chance for {count:,} classes: the list's class order is probably not {order}"


def write_results(config: Config, weights: Weights, results: dict[str, float]) -> Path:
    """Write an evaluation to ``eval.json`` of the run, or beside it if the weights are not the run's.

    Raises:
        OSError: it can't be written.
    """
    folder = config.trained_folder
    has_run = weights_file(folder / "latest").exists() or weights_file(folder / "best_model").exists()
    file = folder / ("eval.json" if weights.is_own or not has_run else "eval_of_other_weights.json")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"weights": weights.path, **results}, indent=1) + "\n")
    return file
