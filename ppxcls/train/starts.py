"""The record of a run's starts, ``starts.jsonl``: where a run was started, on what, and with which images.

A run has one line for its first start, and one for each start that resumed it. ``ppxcls verify`` compares the
lines with the machine that repeats the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ppxcls.checkpoints.compatibility import RunFacts, flatten
from ppxcls.checkpoints.progress import Progress
from ppxcls.config.plugins import plugin_codes
from ppxcls.config.yaml_values import read_yaml
from ppxcls.data.dataset import Dataset
from ppxcls.data.loader import Batch
from ppxcls.models.classifier_part import state_tensors
from ppxcls.models.weights import to_numpy
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import read_regular
from ppxcls.system.json_text import read_json
from ppxcls.system.machine_facts import machine_facts
from ppxcls.train.trackers import JsonLines

_IMAGES = 16  # number of images whose content is recorded
_MAX_FILE_BYTES = 1 << 24
_MAX_FACT_CHARACTERS = 1 << 14
_RATE_KEYS = ("Optimizer.", "Global.scale_lr", "Global.base_batch_size")
EPOCHS_FACT, OPTIMIZER_FACT = "epochs", "optimizer"
FILES_FACT, IMAGES_FACT, WEIGHTS_FACT = "files", "images", "start_weights"


def start_facts(facts: RunFacts, network: nn.Layer, batch: Batch, dataset: Dataset) -> dict[str, str]:
    """Returns what decides the bits of the next steps, as texts by name.

    Args:
        facts: facts of the run.
        network: network before its next step.
        batch: next batch of the first process.
        dataset: training data.
    """
    code = hashlib.sha256(b"".join(sorted(code.data for code in plugin_codes())))
    return {
        **machine_facts(),
        "ppxcls": facts.ppxcls,
        "paddle": facts.paddle,
        "device": _device(),
        "processes": str(facts.world_size),
        "plugins": code.hexdigest(),
        "train_list": facts.train_list,
        **schedule_facts(facts),
        WEIGHTS_FACT: state_digest(to_numpy(state_tensors(network))),
        **image_facts(batch, dataset),
    }


def schedule_facts(facts: RunFacts) -> dict[str, str]:
    """Returns the facts that decide about the optimizer's steps, and may change if a run is resumed."""
    leaves = flatten(read_yaml(facts.config, "the config"))
    settings = {key: value for key, value in leaves.items() if key.startswith(_RATE_KEYS)}
    return {
        EPOCHS_FACT: str(leaves.get("Global.epochs")),
        "samples_per_step": str(facts.global_batch * facts.update_freq),
        OPTIMIZER_FACT: hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest(),
    }


def image_facts(batch: Batch, dataset: Dataset) -> dict[str, str]:
    """Returns digests of a batch's first images: of their files, and of their pixels after the transforms."""
    files = hashlib.sha256()
    for index in batch.plan.indices[:_IMAGES]:
        try:
            content = dataset.read(int(index))
        except (OSError, ValueError):
            continue
        if isinstance(content, np.ndarray):
            content = np.ascontiguousarray(content).tobytes()
        if isinstance(content, bytes):  # parts of an image of a pack are known by the digest of the pack
            files.update(hashlib.sha256(content).digest())
    pixels = hashlib.sha256(np.ascontiguousarray(batch.images[:_IMAGES]).tobytes())
    return {FILES_FACT: files.hexdigest(), IMAGES_FACT: pixels.hexdigest()}


def state_digest(state: Mapping[str, Any]) -> str:
    """Returns a SHA-256 of the arrays of a state, with their keys, types and shapes."""
    digest = hashlib.sha256()
    for key in sorted(state):
        array: Array = np.asarray(state[key])
        digest.update(f"{key} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _device() -> str:
    device = paddle.get_device()
    if not device.startswith("gpu"):
        return str(device)
    versions = f"CUDA {paddle.version.cuda()}, cuDNN {paddle.version.cudnn()}"
    return f"{paddle.device.cuda.get_device_name()}, {versions}"


def append_start(file: Path, progress: Progress, facts: Mapping[str, str]) -> None:
    """Adds a start to the record, and removes later ones, whose steps are repeated.

    Args:
        file: the record.
        progress: progress of the run at the start.
        facts: result of ``start_facts``.

    Raises:
        OSError: the record can't be read or written.
    """
    lines = JsonLines(file)
    lines.start(progress)
    place = {"epoch": progress.epoch, "iter": progress.batches_done, "step": progress.step}
    lines.log("start", place, dict(facts))


def read_start(file: Path, epoch: int, batches_done: int) -> tuple[tuple[int, int], dict[str, str]] | None:
    """Returns the last start of a run at or before a place.

    Args:
        file: the record, which a stranger may have written.
        epoch: epoch of the place.
        batches_done: number of batches before the place in its epoch.

    Returns:
        Epoch and batches before the start, and the facts; None if there is no record of it.
    """
    starts: dict[tuple[int, int], dict[str, str]] = {}
    try:
        lines = read_regular(file, _MAX_FILE_BYTES).split(b"\n")
    except (OSError, ValueError):
        return None
    for line in lines:
        try:
            values = read_json(line)
        except ValueError:
            continue  # incomplete, because the machine went down
        if not isinstance(values, dict):
            continue
        start_epoch, start_batches = values.get("epoch"), values.get("iter")
        if not isinstance(start_epoch, int) or not isinstance(start_batches, int):
            continue
        if (start_epoch, start_batches) <= (epoch, batches_done):
            starts[start_epoch, start_batches] = {
                name: value
                for name, value in values.items()
                if isinstance(value, str) and name != "kind" and len(value) <= _MAX_FACT_CHARACTERS
            }
    return max(starts.items(), default=None)
