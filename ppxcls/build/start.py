"""Starts this process of a job: device, connection to the other ranks, lock of the run's folder, and log."""

from __future__ import annotations

from typing import Any

import paddle

from ppxcls.checkpoints.run_folder import RunFolder
from ppxcls.config.sections import Config
from ppxcls.models.common_keys import MODELS
from ppxcls.system import distributed
from ppxcls.system.devices import DeviceError
from ppxcls.system.environment import launched_rank
from ppxcls.system.logs import logger, set_up_logging


def start_terminal_log() -> None:
    """Starts the log on the terminal. Its lines are also in the run's log, which ``start_job`` starts."""
    set_up_logging(launched_rank(), is_file_later=True)


def start_job(config: Config, folder: RunFolder | None = None) -> None:
    """Selects the device, joins the other processes under a launcher, and starts the log.

    The first process locks the run's folder.

    Args:
        config: config of the job.
        folder: run's folder to lock; None to lock nothing.

    Raises:
        ConfigError: as ``start_processes``.
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
    if warning := _layout_warning(config):
        logger.warning(warning)
    paddle.seed(config.Global.seed or 0)  # for the initial weights


def start_processes(config: Config) -> None:
    """Selects the device and, under a launcher, joins the other processes.

    Raises:
        ConfigError: the device does not exist or can't compute, or it does not support a setting.
        JobError: the other processes can't be reached.
    """
    section = config.Global
    if section.to_static == "CINN" and not paddle.is_compiled_with_cinn():
        raise config.where("Global.to_static").error(
            f"expected true or false, received 'CINN': this build of Paddle {paddle.__version__} has no CINN"
        )
    _check_layout(config)
    try:
        distributed.start(
            section.device,
            deterministic=section.deterministic,
            timeout=section.hang_timeout,
            cudnn_search=section.cudnn_search,
            float16_channels_last=_is_channels_last(config) and _computation_type(config) == "float16",
        )
    except DeviceError as error:
        raise config.where(f"Global.{error.setting}").error(str(error)) from None


def _check_layout(config: Config) -> None:
    section = config.Global
    is_gpu = section.device.split(":", maxsplit=1)[0] == "gpu"
    if is_gpu and section.deterministic and _is_channels_last(config):
        raise config.where("Arch.data_format").error(
            "expected 'NCHW' with Global.deterministic, received 'NHWC': "
            "on GPUs, Paddle sums the gradients of depthwise filters in this layout in no fixed order"
        )


def _is_channels_last(config: Config) -> bool:
    return MODELS.common_keys(config.Arch).data_format == "NHWC"


def _computation_type(config: Config) -> str:
    return config.AMP.dtype if config.AMP and config.AMP.use_amp else "float32"


def _layout_warning(config: Config) -> str | None:
    """Returns a warning if this layout may be slower on the current device; None otherwise."""
    dtype = _computation_type(config)
    kind = paddle.get_device().split(":")[0]
    if kind == "cpu" or not _is_channels_last(config) or (kind == "gpu" and dtype == "float16"):
        return None
    if kind != "gpu":
        return (
            f"Arch.data_format is NHWC: whether {kind} is faster in this layout is not known; "
            "measure it against NCHW with scripts/benchmarks/gpu.py"
        )
    return (
        f"Arch.data_format is NHWC with {dtype}: on GPUs, Paddle transposes the input of each batch norm "
        "in this layout, except in float16; measure it against NCHW with scripts/benchmarks/gpu.py"
    )


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
