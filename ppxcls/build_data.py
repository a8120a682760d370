"""From a config to the data of training and evaluation: the part of ``build`` that reads ``DataLoader``."""

from __future__ import annotations

import inspect

from tqdm import tqdm

from ppxcls import distributed
from ppxcls.config import Config, DatasetSection
from ppxcls.data.bad_samples import BadSamples
from ppxcls.data.check import Report, check_lists
from ppxcls.data.dataset import ImageNetDataset
from ppxcls.data.loader import Loader
from ppxcls.registry import DATASETS, MODELS, SAMPLERS, split_block


def start_processes(config: Config) -> None:
    """Select the device and, under a launcher, join the other processes.

    Raises:
        ConfigError: the device is not there.
        JobError: the other processes can't be reached.
    """
    try:
        distributed.start(config.Global.device, config.Global.deterministic, config.Global.hang_timeout)
    except distributed.DeviceError as error:
        raise config.where("Global.device").error(str(error)) from None


def class_num(config: Config) -> int:
    """The number of classes of the config's network: from ``Arch``, or the network's own default."""
    default = inspect.signature(MODELS.get(config.Arch["name"], config.where("Arch"))).parameters["class_num"].default
    return int(config.Arch.get("class_num", default))


def build_dataset(config: Config, mode: str) -> ImageNetDataset:
    """The data set of ``DataLoader.Train`` or ``DataLoader.Eval``.

    Raises:
        ConfigError, DataError: as ``build_trainer``.
    """
    section: DatasetSection = getattr(config.DataLoader, mode)
    name, arguments = split_block(section.dataset)
    known = {"class_num": class_num(config), "patience": section.loader.read_patience}
    dataset: ImageNetDataset = DATASETS.build(name, arguments, config.where(f"DataLoader.{mode}.dataset"), **known)
    return dataset


def build_loader(config: Config, mode: str) -> Loader:
    """The loader of ``DataLoader.Train`` or ``DataLoader.Eval``, for this process's part.

    Where ``Global.check_data`` says so, it looks for every file first.

    Raises:
        ConfigError, DataError: as ``build_trainer``.
    """
    section: DatasetSection = getattr(config.DataLoader, mode)
    where = config.where(f"DataLoader.{mode}")
    if mode == "Eval" and section.sampler.get("drop_last"):
        raise (where / "sampler" / "drop_last").error("expected false: every sample is evaluated exactly once")
    dataset = build_dataset(config, mode)
    if config.Global.check_data:
        dataset.check_files()
    sampler = SAMPLERS.build(
        *split_block(section.sampler),
        where / "sampler",
        num_samples=len(dataset),
        labels=dataset.index.labels,
        seed=config.Global.seed or 0,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    bad_samples = None
    if config.Global.on_bad_image == "skip":
        bad_samples = BadSamples(config.run_folder / "bad_samples.txt", dataset, config.Global.max_bad_share)
    return Loader(dataset, sampler, section.loader.num_workers, bad_samples, config.Global.hang_timeout)


def check_data(config: Config, progress_bar: bool = True) -> Report:
    """Decode every file of the config's lists and report what is wrong with them, with a progress bar on a terminal.

    Raises:
        ConfigError: there are no lists.
        DataError: a list can't be used.
    """
    modes = [mode for mode in ("Train", "Eval") if config.DataLoader and getattr(config.DataLoader, mode)]
    if not modes:
        raise config.where("DataLoader").error("the section is missing")
    datasets = [build_dataset(config, mode) for mode in modes]
    shown = None if progress_bar else True
    with tqdm(total=sum(map(len, datasets)), unit="file", disable=shown, leave=False) as bar:
        return check_lists(datasets, class_num(config), progress=bar.update)
