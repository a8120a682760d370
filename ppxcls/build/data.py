"""Builds data sets and loaders from ``DataLoader.Train`` and ``DataLoader.Eval``."""

from __future__ import annotations

import re
from pathlib import Path

import paddle
from tqdm import tqdm

from ppxcls.build import BAD_SAMPLES
from ppxcls.build.choices import class_names_for, class_num, compare_normalisation
from ppxcls.build.class_order import mapping_to, run_classes, training_classes
from ppxcls.build.judging import judging_config
from ppxcls.config.early_stop_checks import check_early_stop
from ppxcls.config.sections import Config, DatasetSection, LoaderSection
from ppxcls.data.bad_samples import BadSamples
from ppxcls.data.check import DataReport, check_lists
from ppxcls.data.dataset import DATASETS, Dataset
from ppxcls.data.groups import GROUPS_FILE, group_pattern, groups_by_pattern, read_groups
from ppxcls.data.label_mapping import ClassNames
from ppxcls.data.loader import Loader
from ppxcls.data.sampler import SAMPLERS, ClassBalancedSampler
from ppxcls.system import distributed
from ppxcls.system.environment import cores_per_rank
from ppxcls.system.logs import logger
from ppxcls.train.class_weights import ClassWeight
from ppxcls.train.losses import LOSSES

# Threads of one process wait for its lock: on 16 cores, 2 threads loaded 2.0 times as many images as one, 4
# threads 3.4 times, 8 threads 4.7 times.
_THREADS_PER_PROCESS = 2


def build_dataset(
    config: Config, mode: str, classes: ClassNames | None, patience: float | None = None
) -> Dataset:
    """Builds the data set of ``DataLoader.Train`` or ``DataLoader.Eval``.

    If the list has names for its classes, its labels are mapped to the network's classes by name.

    Args:
        config: config with this section.
        mode: ``Train`` or ``Eval``.
        classes: classes of the network, as ``network_classes`` returns them; None if they are not known.
        patience: seconds to retry reading from a disk that does not answer; None for the section's
            ``read_patience``.

    Raises:
        ConfigError, DataError: the data set can't be used.
    """
    section: DatasetSection = getattr(config.DataLoader, mode)
    seconds = section.loader.read_patience if patience is None else patience
    mapping = mapping_to(classes, config, mode)
    if mapping is None:
        return DATASETS.build(section.dataset, class_num=class_num(config), patience=seconds)
    dataset = DATASETS.build(section.dataset, class_num=None, patience=seconds)
    dataset.map_labels(mapping)
    if distributed.rank() == 0:
        logger.warning(f"{dataset.source}: labels are {mapping}")
    return dataset


def build_images(config: Config, mode: str) -> Dataset:
    """Builds a data set for its images alone: its labels are neither mapped nor checked.

    Args:
        config: config with this section.
        mode: ``Train`` or ``Eval``.

    Raises:
        ConfigError, DataError: the data set can't be used.
    """
    section: DatasetSection = getattr(config.DataLoader, mode)
    return DATASETS.build(section.dataset, class_num=None, patience=0)


def build_loader(config: Config, mode: str, classes: ClassNames | None) -> Loader:
    """Builds the loader of ``DataLoader.Train`` or ``DataLoader.Eval``, for this process's part of the data.

    If ``Global.check_data`` is set, it first checks that every file exists.

    Args:
        config: config with this section.
        mode: ``Train`` or ``Eval``.
        classes: classes of the network; see ``build_dataset``.

    Raises:
        ConfigError, DataError: the data set can't be used.
    """
    section: DatasetSection = getattr(config.DataLoader, mode)
    if mode == "Eval" and section.sampler.get("drop_last"):
        place = config.where("DataLoader.Eval.sampler.drop_last")
        raise place.error("expected false: every sample is evaluated exactly once")
    if mode == "Train":
        compare_normalisation(config)
    dataset = build_dataset(config, mode, classes)
    if config.Global.check_data:
        dataset.check_files()
    sampler = SAMPLERS.build(
        section.sampler,
        num_samples=len(dataset),
        labels=dataset.labels,
        seed=config.Global.seed or 0,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    bad_samples = None
    if config.Global.on_bad_image == "skip":
        bad_samples = BadSamples(config.run_folder / BAD_SAMPLES, dataset, config.Global.max_bad_share)
    return Loader(
        dataset,
        sampler,
        num_workers=section.loader.num_workers,
        num_processes=_num_processes(config, mode, section.loader),
        bad_samples=bad_samples,
        timeout=config.Global.hang_timeout,
    )


def _num_processes(config: Config, mode: str, section: LoaderSection) -> int:
    """Returns the number of loader processes. Raises ConfigError if there are more than threads."""
    threads, processes = section.num_workers, section.num_processes
    if processes is None:
        if paddle.get_device() == "cpu":
            return 0
        # Many threads may wait for an object store. More processes than cores would not help.
        return min(-(-threads // _THREADS_PER_PROCESS), cores_per_rank())
    if processes > threads:
        place = config.where(f"DataLoader.{mode}.loader.num_processes")
        raise place.error(
            f"expected at most num_workers, {threads}, because each process needs a thread; "
            f"received {processes}"
        )
    return processes


def check_data(config: Config, *, progress_bar: bool = True, group: str | None = None) -> DataReport:
    """Decodes every sample of the config's data sets and reports the problems.

    Copies of one picture in two data sets are problems: also with the images of ``DataLoader.Test``. So are
    images of one group in two data sets.

    Args:
        config: config with ``DataLoader``.
        progress_bar: True to show a progress bar on a terminal.
        group: regular expression that finds the group of an image in its path in the list, with one pair of
            parentheses; None for the groups in ``groups.csv`` beside each list, if there is such a file.

    Raises:
        ConfigError: the config has no data set, or no evaluation counts for ``Global.early_stop``.
        DataError: a list can't be used, or the groups can't.
    """
    pattern = group_pattern(group) if group is not None else None
    modes = [mode for mode in ("Train", "Eval") if config.DataLoader and getattr(config.DataLoader, mode)]
    if not modes:
        raise config.where("DataLoader").error("the section is missing")
    check_early_stop(config)
    compare_normalisation(config)
    classes = run_classes(config) or training_classes(config)
    datasets = [build_dataset(config, mode, classes, patience=0) for mode in modes]
    if config.DataLoader and config.DataLoader.Test:
        datasets.append(build_dataset(judging_config(config), "Eval", classes, patience=0))
    total = sum(len(dataset) for dataset in datasets)
    is_hidden = None if progress_bar else True  # with None, tqdm shows the bar only on a terminal
    with tqdm(total=total, unit="file", disable=is_hidden, leave=False) as bar:
        names = class_names_for(config, "train")
        groups = [_groups_of(dataset, pattern) for dataset in datasets]
        return check_lists(
            datasets,
            class_num(config),
            progress=bar.update,
            names=names,
            groups=groups,
            class_weight_key=class_weight_key(config),
        )


def class_weight_key(config: Config) -> str | None:
    """Returns the key for class weights of the first loss that can have them.

    Returns:
        A key such as ``Loss.Train.0.CELoss.class_weight``; None if there is no such loss, or if the training
        makes up for unbalanced classes already.
    """
    sampler = config.DataLoader.Train.sampler.name if config.DataLoader and config.DataLoader.Train else ""
    keys = []
    for number, block in enumerate(config.Loss.Train if config.Loss else []):
        if block.arguments.get("class_weight") or block.arguments.get("logit_adjustment"):
            return None
        if LOSSES.schema(block.name).get("class_weight") == ClassWeight | None:
            keys.append(f"Loss.Train.{number}.{block.name}.class_weight")
    return keys[0] if keys and sampler != ClassBalancedSampler.__name__ else None


def _groups_of(dataset: Dataset, pattern: re.Pattern[str] | None) -> dict[str, str]:
    """Returns the group of each image, by the path in its list; empty if the groups are not known."""
    if pattern is None:
        list_file = Path(dataset.source)  # of a data set without a list, it is any text
        return (read_groups(list_file.with_name(GROUPS_FILE)) or {}) if list_file.is_file() else {}
    return groups_by_pattern([dataset.listed(index) for index in range(len(dataset))], pattern)
