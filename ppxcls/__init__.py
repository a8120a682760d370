"""Training, evaluation and fine-tuning of Xception classifiers on PaddlePaddle, configured by a YAML file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ppxcls._version import __version__ as __version__
from ppxcls.system import environment
from ppxcls.system import watchdog as watchdog  # records the parent process as early as possible

environment.prepare_cpu()

# Module of each public name. It is imported at the first use of the name, so importing ppxcls is fast.
_MODULE_BY_NAME = {
    "ConfigError": "ppxcls.config.checks",
    "DataError": "ppxcls.data.errors",
    "CheckpointError": "ppxcls.checkpoints.files",
    "RunFolderError": "ppxcls.checkpoints.run_folder",
    "Preempted": "ppxcls.system.signals",
    "TrainingError": "ppxcls.train.loss_watch",
    "load_config": "ppxcls.config.load",
    "list_models": "ppxcls.build.network",
    "build_model": "ppxcls.build.network",
    "build_trainer": "ppxcls.build.trainer",
    "evaluate": "ppxcls.build.evaluation",
    "check_data": "ppxcls.build.data",
    "make_lists": "ppxcls.data.make_lists",
    "pack": "ppxcls.packed.write",
    "verify_pack": "ppxcls.packed.write",
    "unpack": "ppxcls.packed.write",
    "convert_weights": "ppxcls.deploy.build",
    "export": "ppxcls.deploy.build",
    "infer": "ppxcls.deploy.build",
    "load": "ppxcls.deploy.build",
    "fit": "ppxcls.fitting.folder",
    "find_lr": "ppxcls.tuning.build",
    "find_batch": "ppxcls.tuning.build",
    "report": "ppxcls.reports.page",
    "serve": "ppxcls.serving.start",
    "load_weights": "ppxcls.models.weights",
    "build_transforms": "ppxcls.data.transforms",
    "MODELS": "ppxcls.models.common_keys",
    "DATASETS": "ppxcls.data.dataset",
    "Dataset": "ppxcls.data.dataset",
    "TransformOps": "ppxcls.data.transforms",
    "TRANSFORMS": "ppxcls.data.transforms",
    "Transform": "ppxcls.data.transforms",
    "SAMPLERS": "ppxcls.data.sampler",
    "DistributedBatchSampler": "ppxcls.data.sampler",
    "LOSSES": "ppxcls.train.losses",
    "Loss": "ppxcls.train.losses",
    "METRICS": "ppxcls.train.metrics",
    "Metric": "ppxcls.train.metrics",
    "BATCH_TRANSFORMS": "ppxcls.train.mixing",
    "OPTIMIZERS": "ppxcls.train.optimizers",
    "LR_SCHEDULES": "ppxcls.train.lr_schedules",
    "TRACKERS": "ppxcls.train.trackers",
    "Tracker": "ppxcls.train.trackers",
    "Bound": "ppxcls.config.checks",
    "build_lr_schedule": "ppxcls.train.lr_schedules",
}

if TYPE_CHECKING:
    from ppxcls.build.data import check_data as check_data
    from ppxcls.build.evaluation import evaluate as evaluate
    from ppxcls.build.network import build_model as build_model
    from ppxcls.build.network import list_models as list_models
    from ppxcls.build.trainer import build_trainer as build_trainer
    from ppxcls.checkpoints.files import CheckpointError as CheckpointError
    from ppxcls.checkpoints.run_folder import RunFolderError as RunFolderError
    from ppxcls.config.checks import ConfigError as ConfigError
    from ppxcls.config.load import load_config as load_config
    from ppxcls.data.errors import DataError as DataError
    from ppxcls.data.make_lists import make_lists as make_lists
    from ppxcls.data.transforms import build_transforms as build_transforms
    from ppxcls.deploy.build import convert_weights as convert_weights
    from ppxcls.deploy.build import export as export
    from ppxcls.deploy.build import infer as infer
    from ppxcls.deploy.build import load as load
    from ppxcls.fitting.folder import fit as fit
    from ppxcls.models.weights import load_weights as load_weights
    from ppxcls.packed.write import pack as pack
    from ppxcls.packed.write import unpack as unpack
    from ppxcls.packed.write import verify_pack as verify_pack
    from ppxcls.reports.page import report as report
    from ppxcls.serving.start import serve as serve
    from ppxcls.system.signals import Preempted as Preempted
    from ppxcls.train.loss_watch import TrainingError as TrainingError
    from ppxcls.train.lr_schedules import build_lr_schedule as build_lr_schedule
    from ppxcls.tuning.build import find_batch as find_batch
    from ppxcls.tuning.build import find_lr as find_lr


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module 'ppxcls' has no attribute {name!r}")
    environment.import_paddle()
    value = getattr(importlib.import_module(_MODULE_BY_NAME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_BY_NAME])
