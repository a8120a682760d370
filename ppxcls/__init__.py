"""Training, evaluation and fine-tuning of Xception classifiers on PaddlePaddle, driven by a YAML."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ppxcls import runtime

__version__ = "0.2.0"

runtime.require_paddle()
runtime.prepare_cpu()

# Name to home: looked up on first use, so that importing ppxcls costs nothing.
_HOMES = {
    "ConfigError": "ppxcls.schema",
    "DataError": "ppxcls.data.dataset",
    "CheckpointError": "ppxcls.state_files",
    "RunFolderError": "ppxcls.run_folder",
    "Preempted": "ppxcls.interrupts",
    "TrainingError": "ppxcls.numbers",
    "load_config": "ppxcls.config",
    "list_models": "ppxcls.build",
    "build_model": "ppxcls.build",
    "build_trainer": "ppxcls.build",
    "evaluate": "ppxcls.build",
    "check_data": "ppxcls.build_data",
    "make_lists": "ppxcls.data.make_lists",
    "convert_weights": "ppxcls.build_deploy",
    "export": "ppxcls.build_deploy",
    "infer": "ppxcls.build_deploy",
    "load_weights": "ppxcls.checkpoint",
    "build_transforms": "ppxcls.data.transforms",
    "build_lr_schedule": "ppxcls.lr_schedules",
}

if TYPE_CHECKING:
    from ppxcls.build import build_model as build_model
    from ppxcls.build import build_trainer as build_trainer
    from ppxcls.build import evaluate as evaluate
    from ppxcls.build import list_models as list_models
    from ppxcls.build_data import check_data as check_data
    from ppxcls.build_deploy import convert_weights as convert_weights
    from ppxcls.build_deploy import export as export
    from ppxcls.build_deploy import infer as infer
    from ppxcls.checkpoint import load_weights as load_weights
    from ppxcls.config import load_config as load_config
    from ppxcls.data.dataset import DataError as DataError
    from ppxcls.data.make_lists import make_lists as make_lists
    from ppxcls.data.transforms import build_transforms as build_transforms
    from ppxcls.interrupts import Preempted as Preempted
    from ppxcls.lr_schedules import build_lr_schedule as build_lr_schedule
    from ppxcls.numbers import TrainingError as TrainingError
    from ppxcls.run_folder import RunFolderError as RunFolderError
    from ppxcls.schema import ConfigError as ConfigError
    from ppxcls.state_files import CheckpointError as CheckpointError


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ppxcls' has no attribute {name!r}")
    runtime.import_paddle()
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
