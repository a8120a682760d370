"""Training, evaluation and fine-tuning of Xception classifiers on PaddlePaddle, configured by a YAML file."""

from ppxcls.system.current_folder import CurrentFolderHidden, leave_current_folder

leave_current_folder()  # before any other import
with CurrentFolderHidden():
    import importlib
    import os
    from typing import TYPE_CHECKING, Any

    from ppxcls._version import __version__ as __version__
    from ppxcls.system import environment, variables
    from ppxcls.system import watchdog as watchdog  # records the parent process as early as possible

    # An invalid variable is an error at the first use of a name, because an error here would have a traceback
    # in a command.
    if variables.prepare(os.environ) is None:
        environment.prepare_cpu()

# Public names by module. A module is imported at the first use of a name, so importing ppxcls is fast.
# ``python scripts/write_public_face.py`` writes the block for type checkers from it.
_NAMES_BY_MODULE = {
    "ppxcls.build.averaging": ("AveragedWeights", "average"),
    "ppxcls.build.calibrating": ("calibrate",),
    "ppxcls.build.data": ("check_data",),
    "ppxcls.build.evaluation": ("evaluate",),
    "ppxcls.build.network": ("build_model", "list_models"),
    "ppxcls.build.trainer": ("build_trainer",),
    "ppxcls.build.verification": ("Verification", "VerificationError", "verify"),
    "ppxcls.checkpoints.files": ("CheckpointError",),
    "ppxcls.checkpoints.run_folder": ("RunFolderError",),
    "ppxcls.config.checks": ("Bound", "ConfigError"),
    "ppxcls.config.load": ("load_config",),
    "ppxcls.config.sections": ("Config",),
    "ppxcls.data.check": ("DataReport",),
    "ppxcls.data.dataset": ("DATASETS", "Dataset"),
    "ppxcls.data.errors": ("DataError",),
    "ppxcls.data.make_lists": ("make_lists",),
    "ppxcls.data.preparation": ("PreparedImages",),
    "ppxcls.data.sampler": ("SAMPLERS", "DistributedBatchSampler", "Sampler"),
    "ppxcls.data.transforms": ("TRANSFORMS", "Transform", "TransformOps", "build_transforms"),
    "ppxcls.deploy.build": ("infer", "load"),
    "ppxcls.deploy.build_export": ("export",),
    "ppxcls.deploy.convert": ("convert_weights",),
    "ppxcls.deploy.predict": ("Prediction", "Predictor"),
    "ppxcls.fitting.folder": ("fit",),
    "ppxcls.models.common_keys": ("MODELS",),
    "ppxcls.models.parts": ("NetworkParts",),
    "ppxcls.models.preprocessing": ("Preprocessing",),
    "ppxcls.packed.write": ("pack", "unpack", "verify_pack"),
    "ppxcls.published.find": ("fetch_weights", "list_weights"),
    "ppxcls.published.load": ("load_weights",),
    "ppxcls.reports.page": ("report",),
    "ppxcls.serving.start": ("serve",),
    "ppxcls.system.signals": ("Preempted",),
    "ppxcls.train.class_weights": ("TrainingClasses",),
    "ppxcls.train.loss_watch": ("TrainingError",),
    "ppxcls.train.losses": ("LOSSES", "Loss"),
    "ppxcls.train.lr_schedules": ("LR_SCHEDULES", "build_lr_schedule"),
    "ppxcls.train.metrics": ("METRICS", "Metric"),
    "ppxcls.train.mixing": ("BATCH_TRANSFORMS", "BatchTransform"),
    "ppxcls.train.optimizers": ("OPTIMIZERS", "OptimizerInputs"),
    "ppxcls.train.trackers": ("TRACKERS", "Tracker"),
    "ppxcls.train.trainer": ("Trainer",),
    "ppxcls.tuning.build": ("find_batch", "find_lr"),
    "ppxcls.tuning.study": ("tune",),
}
# Modules that do not need Paddle. Loader processes import plugins with such names only, and no Paddle.
_WITHOUT_PADDLE = ("ppxcls.config.checks", "ppxcls.data.", "ppxcls.packed.", "ppxcls.published.find")
_MODULE_BY_NAME = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}

if TYPE_CHECKING:
    from ppxcls.build.averaging import AveragedWeights as AveragedWeights
    from ppxcls.build.averaging import average as average
    from ppxcls.build.calibrating import calibrate as calibrate
    from ppxcls.build.data import check_data as check_data
    from ppxcls.build.evaluation import evaluate as evaluate
    from ppxcls.build.network import build_model as build_model
    from ppxcls.build.network import list_models as list_models
    from ppxcls.build.trainer import build_trainer as build_trainer
    from ppxcls.build.verification import Verification as Verification
    from ppxcls.build.verification import VerificationError as VerificationError
    from ppxcls.build.verification import verify as verify
    from ppxcls.checkpoints.files import CheckpointError as CheckpointError
    from ppxcls.checkpoints.run_folder import RunFolderError as RunFolderError
    from ppxcls.config.checks import Bound as Bound
    from ppxcls.config.checks import ConfigError as ConfigError
    from ppxcls.config.load import load_config as load_config
    from ppxcls.config.sections import Config as Config
    from ppxcls.data.check import DataReport as DataReport
    from ppxcls.data.dataset import DATASETS as DATASETS
    from ppxcls.data.dataset import Dataset as Dataset
    from ppxcls.data.errors import DataError as DataError
    from ppxcls.data.make_lists import make_lists as make_lists
    from ppxcls.data.preparation import PreparedImages as PreparedImages
    from ppxcls.data.sampler import SAMPLERS as SAMPLERS
    from ppxcls.data.sampler import DistributedBatchSampler as DistributedBatchSampler
    from ppxcls.data.sampler import Sampler as Sampler
    from ppxcls.data.transforms import TRANSFORMS as TRANSFORMS
    from ppxcls.data.transforms import Transform as Transform
    from ppxcls.data.transforms import TransformOps as TransformOps
    from ppxcls.data.transforms import build_transforms as build_transforms
    from ppxcls.deploy.build import infer as infer
    from ppxcls.deploy.build import load as load
    from ppxcls.deploy.build_export import export as export
    from ppxcls.deploy.convert import convert_weights as convert_weights
    from ppxcls.deploy.predict import Prediction as Prediction
    from ppxcls.deploy.predict import Predictor as Predictor
    from ppxcls.fitting.folder import fit as fit
    from ppxcls.models.common_keys import MODELS as MODELS
    from ppxcls.models.parts import NetworkParts as NetworkParts
    from ppxcls.models.preprocessing import Preprocessing as Preprocessing
    from ppxcls.packed.write import pack as pack
    from ppxcls.packed.write import unpack as unpack
    from ppxcls.packed.write import verify_pack as verify_pack
    from ppxcls.published.find import fetch_weights as fetch_weights
    from ppxcls.published.find import list_weights as list_weights
    from ppxcls.published.load import load_weights as load_weights
    from ppxcls.reports.page import report as report
    from ppxcls.serving.start import serve as serve
    from ppxcls.system.signals import Preempted as Preempted
    from ppxcls.train.class_weights import TrainingClasses as TrainingClasses
    from ppxcls.train.loss_watch import TrainingError as TrainingError
    from ppxcls.train.losses import LOSSES as LOSSES
    from ppxcls.train.losses import Loss as Loss
    from ppxcls.train.lr_schedules import LR_SCHEDULES as LR_SCHEDULES
    from ppxcls.train.lr_schedules import build_lr_schedule as build_lr_schedule
    from ppxcls.train.metrics import METRICS as METRICS
    from ppxcls.train.metrics import Metric as Metric
    from ppxcls.train.mixing import BATCH_TRANSFORMS as BATCH_TRANSFORMS
    from ppxcls.train.mixing import BatchTransform as BatchTransform
    from ppxcls.train.optimizers import OPTIMIZERS as OPTIMIZERS
    from ppxcls.train.optimizers import OptimizerInputs as OptimizerInputs
    from ppxcls.train.trackers import TRACKERS as TRACKERS
    from ppxcls.train.trackers import Tracker as Tracker
    from ppxcls.train.trainer import Trainer as Trainer
    from ppxcls.tuning.build import find_batch as find_batch
    from ppxcls.tuning.build import find_lr as find_lr
    from ppxcls.tuning.study import tune as tune


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module 'ppxcls' has no attribute {name!r}")
    variables.require_valid()
    with CurrentFolderHidden():
        if not _MODULE_BY_NAME[name].startswith(_WITHOUT_PADDLE):
            environment.import_paddle()
        value = getattr(importlib.import_module(_MODULE_BY_NAME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_BY_NAME])
