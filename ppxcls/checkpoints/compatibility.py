"""Compares a checkpoint's config and data with those of the run that wants to continue it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ppxcls.checkpoints.files import CheckpointError
from ppxcls.checkpoints.progress import Progress
from ppxcls.config.checks import ConfigError
from ppxcls.config.yaml_values import read_yaml
from ppxcls.system.logs import logger

_OTHER_NETWORK = ("Arch.", "Optimizer.name", "Global.seed")  # keys that can't change during a run
_OF_ONE_START = ("Global.checkpoints", "Global.allow_changes")  # wishes of one command line
_OF_THE_MACHINE = (
    *("image_root", "cls_label_path", "dataset.pack", "dataset.cache_dir", "dataset.cache_gb", "num_workers"),
    *("Global.device", "Global.output_dir", "Global.checkpoints"),
)


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run that a checkpoint's manifest holds, besides the progress.

    Attributes:
        ppxcls, paddle: versions.
        config: the resolved config, as YAML.
        train_list: SHA-256 of the training list.
        eval_list: SHA-256 of the evaluation list; empty without evaluation.
        samples: number of training samples.
        global_batch: samples of all processes in one iteration.
        update_freq: iterations per optimizer step.
        steps_per_epoch: optimizer steps per epoch.
        world_size: number of processes.
        run: id of the run, which all its checkpoints share; None in those of older versions.
        started_from: weights that the run started from; None for fresh ones.
    """

    ppxcls: str
    paddle: str
    config: str
    train_list: str
    eval_list: str
    samples: int
    global_batch: int
    update_freq: int
    steps_per_epoch: int
    world_size: int
    run: str | None = None
    started_from: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The facts as the manifest has them."""
        return asdict(self)

    def of_all_ranks(self) -> dict[str, str]:
        """What must be equal on all ranks: the lists, and the config without what belongs to one machine."""
        leaves = flat(read_yaml(self.config, "the config"))
        config = {
            k: v
            for k, v in leaves.items()
            if not k.endswith(_OF_THE_MACHINE) and not k.startswith("Global.plugins")
        }
        return {
            "config": repr(sorted(config.items())),
            "training list": self.train_list,
            "evaluation list": self.eval_list,
        }


def check_continues(manifest: Mapping[str, Any], facts: RunFacts, allow_changes: bool) -> None:
    """Log what has changed since the checkpoint, and refuse changes that a run can't make.

    Args:
        manifest: the checkpoint's; empty for a checkpoint of PaddleClas, and then nothing is compared.
        facts: about this run.
        allow_changes: warn instead of refusing.

    Raises:
        CheckpointError: the network, optimizer, seed, training list, or number of samples per step has
            changed.
    """
    try:
        old = RunFacts(**{key: manifest[key] for key in asdict(facts) if key in manifest})
    except TypeError:  # PaddleClas's
        return
    try:
        before = flat(read_yaml(old.config, "the checkpoint's config"))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    after = flat(read_yaml(facts.config, "the config"))
    changes = {
        key: f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted({*before, *after})
        if not _same(before, after, key) and key not in _OF_ONE_START
    }
    refused = [text for key, text in changes.items() if key.startswith(_OTHER_NETWORK)]
    if old.train_list != facts.train_list:
        refused.append(f"another training list ({old.samples:,} samples then, {facts.samples:,} now)")
    if old.global_batch * old.update_freq != facts.global_batch * facts.update_freq:
        sizes = [f"{f.global_batch} x update_freq {f.update_freq}" for f in (old, facts)]
        refused.append(f"samples per step of all {facts.world_size} processes: {sizes[0]} -> {sizes[1]}")
    others = [text for text in changes.values() if text not in refused]
    if old.eval_list != facts.eval_list:
        others.append("another evaluation list: the best metric so far is not comparable")
    if refused and not allow_changes:
        raise CheckpointError(
            f"the checkpoint can't be continued, because of changes: {'; '.join(refused)} (allow: -o Global.allow_changes=True)"
        )
    for text in refused + others:
        logger.warning(f"changed since the checkpoint: {text}")


def _same(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> bool:
    """Whether a key has not changed. One that an older version did not have counts as empty."""
    if key in before and key in after:
        return bool(before[key] == after[key])
    return not before.get(key) and not after.get(key)


def converted_progress(progress: Progress, manifest: Mapping[str, Any], facts: RunFacts) -> Progress:
    """The progress in batches and steps of this run, which may have other sizes than the checkpoint's run had."""
    then = manifest.get("global_batch", facts.global_batch)
    same = (then, manifest.get("steps_per_epoch")) == (facts.global_batch, facts.steps_per_epoch)
    if same and manifest.get("update_freq") == facts.update_freq:
        return progress
    batches = math.ceil(facts.samples / facts.global_batch)
    done = min(progress.batches_done * then // facts.global_batch, batches)
    progress.batches_done = done - done % facts.update_freq
    progress.step = (progress.epoch - 1) * facts.steps_per_epoch + progress.batches_done // facts.update_freq
    return progress


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested config by their key paths."""
    if isinstance(tree, dict):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list):
        items = [(str(i), value) for i, value in enumerate(tree)]
    else:
        return {prefix: tree}
    return {
        k: v for key, value in items for k, v in flat(value, f"{prefix}.{key}" if prefix else key).items()
    }
