"""What a user asks ``fit`` for, and the checks that need no image."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppxcls.build.network import list_models
from ppxcls.data.errors import DataError
from ppxcls.data.group_split import check_folds
from ppxcls.data.held_out import Shares
from ppxcls.data.label_table import table_root
from ppxcls.fitting.photographs import DEFAULT_SHARES
from ppxcls.fitting.settings import check_images_of_weights, network_of
from ppxcls.models.weights import weights_file
from ppxcls.published.find import cached_weights, is_weights_word, network_of_word, weights_path
from ppxcls.reports.rendering import PACKAGES_HINT
from ppxcls.system.devices import DeviceError, process_device
from ppxcls.system.logs import logger
from ppxcls.system.output_paths import check_output_folder
from ppxcls.system.paths import url_problem

_RESUME_KEYS = ("Global.checkpoints=", "Global.allow_changes=")  # overrides that choose no setting
# Keys of the place, the lists and the start of a training, which each fold has for itself.
_KEYS_OF_FOLDS = (
    "Global.output_dir",
    "Global.checkpoints",
    "Global.pretrained_model",
    *(f"DataLoader.{part}.dataset.{key}" for part in ("Train", "Eval") for key in ("cls_label_path", "pack")),
)
# With weights, the choice is followed by a training on all photographs, so a larger share costs nothing.
_VAL_SHARE_WITH_WEIGHTS = 0.2
_FROM_SCRATCH = "none"  # value of --weights for a training from scratch
_SOLVER_PACKAGE = "scipy"  # its L-BFGS trains the linear classifier
_REPORT_PACKAGES = ("jinja2", "matplotlib", "scipy")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of ``fit``.

    Attributes:
        photos: folder of photographs.
        table: table of the photographs and their labels; None if their folders are the classes.
        options: columns of the table, and the groups, by their names in ``make_lists``.
        output: folder for the lists, the YAML and the run.
        weights: weights to start from; None for fresh ones.
        network: name of the network.
        minutes: approximate training time, in minutes.
        device: device to train on; None for the best one of this machine.
        find_lr, find_batch: True to search for the learning rate or the batch size.
        overrides: config overrides ``A.b=value``.
        trust: True to run the plugins that the YAML files name.
        shares: shares of the photographs that are held out to choose and to judge.
        folds: number of folds of a cross-validation; 0 for none.
        whole: output folder of the fit of all photographs, if this is one of its folds; None otherwise.
    """

    photos: Path
    table: Path | None
    options: Mapping[str, str | None]
    output: Path
    weights: str | None
    network: str
    minutes: float
    device: str | None
    find_lr: bool
    find_batch: bool
    overrides: Sequence[str]
    trust: bool
    shares: Shares
    folds: int = 0
    whole: Path | None = None

    def facts(self) -> dict[str, Any]:
        """Returns what must be equal if an earlier ``fit`` is to be continued, by the option's name."""
        return {
            "PHOTOS": str((self.table or self.photos).resolve()),
            **{f"--{name.replace('_', '-')}": value for name, value in self.options.items()},
            "--weights": str(weights_file(self.weights).resolve()) if self.weights else None,
            "--network": self.network,
            "--minutes": self.minutes,
            "--device": self.device,
            "--find-lr": self.find_lr,
            "--find-batch": self.find_batch,
            "--val-share": self.shares.val,
            "--test-share": self.shares.test,
            "--folds": self.folds or None,
            "-o": [text for text in self.overrides if not text.startswith(_RESUME_KEYS)],
        }


def checked_request(
    photos: str | Path,
    output: str | Path | None,
    *,
    weights: str | None,
    network: str | None,
    minutes: float,
    device: str | None,
    find_lr: bool,
    find_batch: bool,
    overrides: Sequence[str],
    trust: bool,
    val_share: float | None,
    test_share: float | None,
    folds: int,
    options: Mapping[str, str | None],
) -> Request:
    """Returns the request of these arguments of ``fit``, after checks that read no image and write nothing.

    Raises:
        DataError: an argument can't work.
        OSError: the output folder can't be written.
    """
    if not (0 < minutes < math.inf):
        raise DataError(f"expected minutes above 0, received {minutes:g}")
    photos, table, output = _checked_places(photos, output, options)
    if network is not None:
        _check_network(network)
    weights, network = _weights_and_network(weights, network)
    if weights:
        check_images_of_weights(weights)
    if val_share is None:
        val_share = _VAL_SHARE_WITH_WEIGHTS if weights else DEFAULT_SHARES.val
    if test_share is None:
        test_share = 0.0 if folds else DEFAULT_SHARES.test  # the folds judge already
    if folds:
        check_folds(folds)
        _check_overrides_of_folds(overrides)
    if device:
        _check_device(device)
    if weights and importlib.util.find_spec(_SOLVER_PACKAGE) is None:
        raise DataError(f"with weights, fit needs {_SOLVER_PACKAGE}: pip install 'ppxcls[report]'")
    _warn_about_report()
    return Request(
        photos=photos,
        table=table,
        options=options,
        output=output,
        weights=weights,
        network=_network(network, weights),
        minutes=minutes,
        device=device,
        find_lr=find_lr,
        find_batch=find_batch,
        overrides=tuple(overrides),
        trust=trust,
        shares=Shares(val_share, test_share),
        folds=folds,
    )


def _check_overrides_of_folds(overrides: Sequence[str]) -> None:
    """Checks that no override gives all folds the same place, list or start.

    Raises:
        DataError: an override does so.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if any(f"{name}.".startswith(f"{key}.") for name in _KEYS_OF_FOLDS):
            raise DataError(
                f"with --folds, expected no override of {key}, because each fold needs its own place, lists "
                "and start"
            )


def _checked_places(
    source: str | Path, output: str | Path | None, options: Mapping[str, str | None]
) -> tuple[Path, Path | None, Path]:
    """Returns the folder of the photographs, their table if there is one, and the folder of the results.

    Raises:
        DataError: a place can't be used.
        OSError: the output folder can't be written.
    """
    if problem := url_problem(source):
        raise DataError(problem)
    source = Path(source)
    is_table = os.path.isfile(source)
    if not is_table and not os.path.isdir(source):
        raise DataError(f"{source}: {'not a folder' if os.path.exists(source) else 'no such folder'}")
    name = source.stem if is_table else source.resolve().name
    output = Path(output) if output else Path("output") / (name or "photos")
    if is_table:
        check_output_folder(output)
        return table_root(source, options["image_root"]), source, output
    if source.resolve() in (output.resolve(), *output.resolve().parents):
        raise DataError(
            f"{output} is inside the folder of photographs, which must not change: give another --output"
        )
    check_output_folder(output)
    return source, None, output


def _weights_and_network(weights: str | None, network: str | None) -> tuple[str | None, str | None]:
    """Returns the path of the weights, if there are any, and the network, if it is known already.

    Raises:
        DataError: there is no such file.
        CheckpointError: published weights can't be fetched.
    """
    is_from_scratch = weights is not None and weights.lower() == _FROM_SCRATCH
    weights = None if is_from_scratch else weights
    network = network or (network_of_word(weights) if weights and is_weights_word(weights) else None)
    weights = str(weights_path(weights, network)) if weights else None
    if weights is None and not is_from_scratch:
        weights = _cached_weights(network)
    if weights and not os.path.isfile(weights_file(weights)):
        raise DataError(f"{weights_file(weights)}: no such file of weights")
    return weights, network


def _cached_weights(network: str | None) -> str | None:
    """Returns published weights that are on this machine already; None if there are none.

    Args:
        network: name of the network; None for any.
    """
    names = [network] if network else list_models()
    for name in names:
        if path := cached_weights(name):
            logger.info(
                f"{path}: these weights of {name} are on this machine, and are used; else --weights none"
            )
            return str(path)
    return None


def _network(network: str | None, weights: str | None) -> str:
    if network is not None:
        return network
    try:
        return network_of(weights)
    except ValueError as error:
        raise DataError(str(error)) from None


def _check_network(network: str) -> None:
    names = list_models()
    if network not in names:
        raise DataError(f"expected one of the networks {', '.join(names)}, received {network!r}")


def _check_device(device: str) -> None:
    try:
        process_device(device, world_size=1)
    except DeviceError as error:
        raise DataError(str(error)) from None


def _warn_about_report() -> None:
    missing_packages = [name for name in _REPORT_PACKAGES if importlib.util.find_spec(name) is None]
    if missing_packages:
        logger.warning(
            f"there will be no report, because it needs {PACKAGES_HINT}; "
            "'ppxcls report RUN' can write it later"
        )
