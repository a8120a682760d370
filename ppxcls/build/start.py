"""Starts this process of a job: device, connection to the other ranks, lock of the run's folder, and log."""

from __future__ import annotations

from typing import Any

import paddle

from ppxcls.checkpoints.run_folder import RunFolder
from ppxcls.config.sections import Config
from ppxcls.system import distributed
from ppxcls.system.logs import logger, set_up_logging


def start_job(config: Config, folder: RunFolder | None = None) -> None:
    """Selects the device, joins the other processes under a launcher, and starts the log.

    The first process locks the run's folder.

    Args:
        config: config of the job.
        folder: run's folder to lock; None to lock nothing.

    Raises:
        ConfigError: the device does not exist.
        JobError: the other processes can't be reached.
        RunFolderError: another run uses the folder.
        OSError: the log can't be written.
    """
    start_processes(config)
    if folder and distributed.rank() == 0:
        folder.lock()
    set_up_logging(distributed.rank(), config.run_folder / "train.log")
    if config.Global.deterministic:
        logger.info(distributed.determinism())
    paddle.seed(config.Global.seed or 0)  # for the initial weights


def start_processes(config: Config) -> None:
    """Selects the device and, under a launcher, joins the other processes.

    Raises:
        ConfigError: the device does not exist, or ``Global.to_static`` needs a compiler that is missing.
        JobError: the other processes can't be reached.
    """
    section = config.Global
    if section.to_static == "CINN" and not paddle.is_compiled_with_cinn():
        raise config.where("Global.to_static").error(
            f"expected true or false, received 'CINN': this build of Paddle {paddle.__version__} has no CINN"
        )
    try:
        distributed.start(
            section.device,
            deterministic=section.deterministic,
            timeout=section.hang_timeout,
            cudnn_search=section.cudnn_search,
        )
    except distributed.DeviceError as error:
        raise config.where("Global.device").error(str(error)) from None


def required_section(config: Config, path: str) -> Any:
    """Returns the section at a key path, such as ``DataLoader.Train``.

    Raises:
        ConfigError: the section is missing.
    """
    section: Any = config
    for key in path.split("."):
        section = getattr(section, key)
        if section is None:
            raise config.where(path).error("the section is missing")
    return section
