"""Compares a checkpoint's config and data with those of the run that resumes it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.checkpoints.progress import Progress
from ppxcls.config.checks import ConfigError
from ppxcls.config.figures import GROUP_PREFIX
from ppxcls.config.paths import PATH_KEYS
from ppxcls.config.yaml_values import read_yaml
from ppxcls.system.logs import warn_once

_FIXED_KEYS = ("Arch.", "Optimizer.name", "Global.seed")  # keys that must not change when a run resumes
_START_KEYS = ("Global.checkpoints", "Global.allow_changes")  # options of one start, not of the run
_LAYER_DECAY, _VERSION_OF_LAYER_DECAY = "Optimizer.layer_decay", "0.15.0"
_PLACE_KEYS = ("image_root", "cls_label_path", "dataset.pack", "dataset.cache_dir", "Global.output_dir")
_MACHINE_KEYS = (*_PLACE_KEYS, "dataset.cache_gb", "num_workers", "Global.device", "Global.checkpoints")


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run that a checkpoint's manifest contains, in addition to the progress.

    Attributes:
        ppxcls, paddle: versions.
        config: resolved config, as YAML.
        train_list: SHA-256 of the training list.
        eval_list: SHA-256 of the evaluation list; empty without evaluation.
        samples: number of training samples.
        global_batch: samples of all processes in one iteration.
        update_freq: iterations per optimizer step.
        steps_per_epoch: optimizer steps per epoch.
        world_size: number of processes.
        run: id of the run, which all its checkpoints share; None in checkpoints of older versions.
        started_from: weights file that the run started from; None for fresh weights.
        class_names: names of the network's classes, in the order of their ids; empty if there are none.
        best_metric: name of the figure that chooses ``best_model``; empty without evaluation.
        eval_groups: SHA-256 of the groups of the evaluation list; empty without groups.
    """

    ppxcls: str
    paddle: str
    config: str
    train_list: str
    samples: int
    global_batch: int
    update_freq: int
    steps_per_epoch: int
    world_size: int
    run: str | None = None
    started_from: str | None = None
    class_names: Sequence[str] = ()
    eval_list: str = ""
    best_metric: str = ""
    eval_groups: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the facts in the form that the manifest stores."""
        return asdict(self)

    def of_all_ranks(self) -> dict[str, str]:
        """Returns the values that must be equal on all ranks.

        They are the lists, and the config without the keys that may differ between machines.
        """
        leaves = flatten(read_yaml(self.config, "the config"))
        config = {
            k: v
            for k, v in leaves.items()
            if not k.endswith(_MACHINE_KEYS) and not k.startswith("Global.plugins")
        }
        return {
            "config": repr(sorted(config.items())),
            "training list": self.train_list,
            "evaluation list": self.eval_list,
        }


def check_continues(manifest: Mapping[str, Any], facts: RunFacts, *, allow_changes: bool) -> None:
    """Logs the changes since the checkpoint, and refuses changes that a run can't make.

    Args:
        manifest: manifest of the checkpoint; empty for a checkpoint of PaddleClas. Then nothing is compared.
        facts: facts about this run.
        allow_changes: True to warn instead of refusing.

    Raises:
        CheckpointError: the network, optimizer, seed, training list, or number of samples per step has
            changed.
    """
    try:
        previous_facts = RunFacts(**{key: manifest[key] for key in asdict(facts) if key in manifest})
    except TypeError:  # a checkpoint of PaddleClas, which has no manifest
        return
    try:
        previous_config = flatten(read_yaml(previous_facts.config, "the checkpoint's config"))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    config = flatten(read_yaml(facts.config, "the config"))
    previous_lists = previous_facts.train_list, previous_facts.eval_list
    # A run may be moved together with its data. The digests of the lists tell that the data is the same.
    ignored_keys = _PLACE_KEYS if previous_lists == (facts.train_list, facts.eval_list) else ()
    changes = {
        key: f"{key}: {previous_config.get(key)!r} -> {config.get(key)!r}"
        for key in sorted({*previous_config, *config})
        if not key.endswith((*_START_KEYS, *ignored_keys)) and not _is_unchanged(previous_config, config, key)
    }
    refused_changes = [text for key, text in changes.items() if key.startswith(_FIXED_KEYS)]
    if previous_facts.train_list != facts.train_list:
        refused_changes.append(
            f"another training list ({previous_facts.samples:,} samples before, {facts.samples:,} now)"
        )
    if previous_facts.global_batch * previous_facts.update_freq != facts.global_batch * facts.update_freq:
        sizes = [f"{f.global_batch} x update_freq {f.update_freq}" for f in (previous_facts, facts)]
        refused_changes.append(
            f"samples per step of all {facts.world_size} processes: {sizes[0]} -> {sizes[1]}"
        )
    other_changes = [text for text in changes.values() if text not in refused_changes]
    if previous_facts.eval_list != facts.eval_list:
        other_changes.append("another evaluation list: the best metric so far is not comparable")
    elif previous_facts.eval_groups != facts.eval_groups and facts.best_metric.startswith(GROUP_PREFIX):
        other_changes.append("other groups of the evaluation list: the best metric so far is not comparable")
    if refused_changes and not allow_changes:
        raise CheckpointError(
            f"the checkpoint can't be resumed because of changes: {'; '.join(refused_changes)} "
            "(to allow them: -o Global.allow_changes=True)"
        )
    for text in refused_changes + other_changes:
        warn_once(f"changed since the checkpoint: {text}")
    if config.get(_LAYER_DECAY) is not None and _is_older(previous_facts.ppxcls, _VERSION_OF_LAYER_DECAY):
        warn_once(
            f"the checkpoint is of ppxcls {previous_facts.ppxcls}: since {_VERSION_OF_LAYER_DECAY}, "
            f"{_LAYER_DECAY} counts other layers, so the run goes on with other learning rates"
        )


def _is_older(version: str, limit: str) -> bool:
    """True if a version such as 0.14.1 is below another one; False if it is in another form."""
    versions = [re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", text) for text in (version, limit)]
    numbers = [[int(digits or 0) for digits in match.groups()] for match in versions if match]
    return len(numbers) == 2 and numbers[0] < numbers[1]


def _is_unchanged(previous_config: Mapping[str, Any], config: Mapping[str, Any], key: str) -> bool:
    """True if a key has the same value in both configs.

    A key that is missing in one of them, such as in an older version's, equals an empty value. Older versions
    wrote relative paths.
    """
    if key in previous_config and key in config:
        values = [previous_config[key], config[key]]
        if key.endswith(PATH_KEYS):
            values = [os.path.abspath(v) if isinstance(v, str) and v else v for v in values]
        return bool(values[0] == values[1])
    return not previous_config.get(key) and not config.get(key)


def convert_progress(progress: Progress, manifest: Mapping[str, Any], facts: RunFacts) -> Progress:
    """Returns the progress in batches and steps of this run, whose sizes may differ.

    If another figure chooses ``best_model`` from now on, it has no best evaluation, because the values of two
    figures can't be compared.
    """
    _forget_other_best(progress, manifest.get("best_metric", ""), facts.best_metric)
    previous_global_batch = manifest.get("global_batch", facts.global_batch)
    is_same_batch = previous_global_batch == facts.global_batch
    is_same_size = is_same_batch and manifest.get("steps_per_epoch") == facts.steps_per_epoch
    if is_same_size and manifest.get("update_freq") == facts.update_freq:
        return progress
    batches_per_epoch = math.ceil(facts.samples / facts.global_batch)
    batches_done = min(progress.batches_done * previous_global_batch // facts.global_batch, batches_per_epoch)
    progress.batches_done = batches_done - batches_done % facts.update_freq
    progress.step = (progress.epoch - 1) * facts.steps_per_epoch + progress.batches_done // facts.update_freq
    return progress


def _forget_other_best(progress: Progress, previous_name: str, name: str) -> None:
    """Forgets the best evaluation, also of a learning rate and an early stop, if another figure chose it.

    Args:
        progress: progress of the checkpoint; it is changed.
        previous_name: name of the figure that chose until now; empty if it is not known.
        name: name of the figure that chooses from now on; empty without evaluation.
    """
    previous_name = progress.best.get("metric") or previous_name or name
    if not name or previous_name == name:
        return
    warn_once(
        f"best_model was chosen by {previous_name}, and {name} chooses it from now on: "
        "the next evaluation is the best so far"
    )
    progress.best = {}
    progress.improvement, progress.stale_evaluations = {}, 0
    if "best" in progress.plateau:  # of ReduceOnPlateau
        del progress.plateau["best"]
        progress.plateau["bad"] = 0


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a nested config by their key paths."""
    if isinstance(tree, dict):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list):
        items = [(str(i), value) for i, value in enumerate(tree)]
    else:
        return {prefix: tree}
    return {
        k: v for key, value in items for k, v in flatten(value, f"{prefix}.{key}" if prefix else key).items()
    }
