"""Predicts with a config, a run or exported files. Only this room reads ``Infer``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ppxcls.build.calibration import calibration_for
from ppxcls.build.choices import (
    class_names_for,
    describe,
    transforms_for,
    weights_for,
)
from ppxcls.build.network import build_network
from ppxcls.build.start import start_processes
from ppxcls.config.load import load_config
from ppxcls.config.sections import Config
from ppxcls.config.values_of_runs import images_of
from ppxcls.data.errors import DataError
from ppxcls.data.transforms import build_transforms, split_for_device
from ppxcls.deploy.answer_limits import NO_SHARES, AnswerShares
from ppxcls.deploy.build_portable import network_settings, portable_network_runner
from ppxcls.deploy.feature_network import FeatureNetwork
from ppxcls.deploy.images import find_images
from ppxcls.deploy.metadata import METADATA_FILE, METADATA_KEY, ExportMetadata, parse_metadata, read_metadata
from ppxcls.deploy.output import Output, write_output_of
from ppxcls.deploy.portable import file_runner
from ppxcls.deploy.predict import DEFAULT_TOPK, NO_CALIBRATION, Prediction, Predictor
from ppxcls.deploy.runners import onnx_metadata
from ppxcls.deploy.threshold import Threshold
from ppxcls.deploy.whole_export import ReplacedError, metadata_beside
from ppxcls.system.json_text import read_json
from ppxcls.system.logs import logger, set_up_logging
from ppxcls.system.paths import url_problem

# Keys that may be overridden together with exported files, which contain all other settings.
_KEYS_WITH_EXPORTED_FILES = (
    "Global.device",
    "Infer.infer_imgs",
    "Infer.batch_size",
    "Infer.PostProcess.topk",
    "Infer.PostProcess.unknown_share",
    "Infer.PostProcess.coverage",
)
_NO_FEATURES = "exported files give no features; predict with the run"
_EXPORT_AGAIN = "calibrate the run, by: ppxcls eval -c RUN --calibrate LIST, and export it again"


def load(
    path: str | Path | Config, image_count: int = 0, *, features: bool = False, trust: bool = False
) -> Predictor:
    """Loads a trained run or an exported model for prediction.

    Example: ``ppxcls.load("output/Xception41").predict(["a.jpg"])``.

    Args:
        path: run folder, its ``config.yaml``, another config, exported folder, or exported ``.onnx`` file.
        image_count: number of images to predict, if known; 0 if unknown. On a CPU, the network of a run is
            compiled at the first batch if there are many images.
        features: True for predictions with ``features``, the input of the classifier. Exported files have
            none.
        trust: True to run code that came with the files: the plugins that a config names, and the program of
            another exporter, which can read and write any file of yours.

    Raises:
        ConfigError, CheckpointError, DataError: the model can't be used.
    """
    return load_with_shares(path, image_count, features=features, trust=trust)


def load_with_shares(
    path: str | Path | Config,
    image_count: int = 0,
    *,
    features: bool = False,
    trust: bool = False,
    shares: AnswerShares = NO_SHARES,
) -> Predictor:
    """Loads a trained run or an exported model for prediction, as ``load``.

    Args:
        path: run or exported model; see ``load``.
        image_count: number of images to predict, if known; see ``load``.
        features: True for predictions with features.
        trust: True to run code that came with the files; see ``load``.
        shares: what a prediction says beside its best classes. A share that is None is that of
            ``Infer.PostProcess``, or of the exported files.

    Raises:
        ConfigError, CheckpointError, DataError: the model can't be used, or can't answer what is asked.
    """
    if isinstance(path, Config):
        return trained_predictor(path, image_count, features=features, shares=shares)
    if (problem := url_problem(path)) is not None:
        raise DataError(problem)
    path = Path(path)
    if path.suffix.lower() == ".onnx" or os.path.isfile(path / METADATA_FILE):
        if features:
            raise DataError(f"{path}: {_NO_FEATURES}")
        return exported_predictor(path, trust=trust, shares=shares)
    config = load_config(path, trust=trust)
    return trained_predictor(config, image_count, features=features, shares=shares)


def trained_predictor(
    config: Config, image_count: int = 0, *, features: bool = False, shares: AnswerShares = NO_SHARES
) -> Predictor:
    """Builds a predictor from a config, with the weights of ``weights_for``.

    Args:
        config: config of a run or a network.
        image_count: number of images to predict, if known; see ``load``.
        features: True for predictions with features; see ``load``.
        shares: what is asked beside the best classes. A share that is None is that of the config.

    Raises:
        ConfigError: the config names no weights, the device does not exist, or the network has no features.
        CheckpointError: the weights can't be used.
        DataError: the class names can't be used, or the weights can't answer what is asked.
    """
    weights = weights_for(config, "infer")
    assert weights
    blocks, class_names = transforms_for(config), class_names_for(config, "infer", weights)
    fitted = calibration_for(config, weights)
    start_processes(config)
    host_transforms, stage = split_for_device(build_transforms(blocks))
    network = build_network(config, "infer", weights)
    feature_count = 0
    if features:
        network = FeatureNetwork(network)
        feature_count = network.feature_count
    calibration = fitted.calibration if fitted else None
    runner = portable_network_runner(network_settings(config), network, stage, image_count)
    predictor = Predictor(
        host_transforms,
        runner,
        names=class_names,
        gives_logits=True,
        description=describe(config, weights, blocks, class_names),
        model=config.Arch.name,
        calibration=calibration,
        feature_count=feature_count,
        threshold=threshold_of(config),
        no_limits="" if fitted else no_calibration_of(config),
    )
    return _limited(predictor, shares.or_else(shares_of(config)))


def _limited(predictor: Predictor, shares: AnswerShares) -> Predictor:
    return predictor.with_limits(**shares.as_dict()) if shares else predictor


def threshold_of(config: Config) -> Threshold | None:
    """Returns the threshold of ``Infer.PostProcess``; None for the best classes."""
    section = config.Infer.PostProcess if config.Infer else None
    if section is None or section.threshold is None:
        return None
    return Threshold(section.threshold, section.label_0, section.label_1)


def shares_of(config: Config) -> AnswerShares:
    """Returns the shares of ``Infer.PostProcess``."""
    section = config.Infer.PostProcess if config.Infer else None
    return AnswerShares(section.unknown_share, section.coverage) if section else NO_SHARES


def no_calibration_of(config: Config) -> str:
    """Returns a message that a run has no calibration, and how it gets one."""
    run = config.run_folder
    return f"{run}: {NO_CALIBRATION}; get one by: ppxcls eval -c {run} --calibrate LIST"


def exported_predictor(
    path: str | Path, *, trust: bool = False, shares: AnswerShares = NO_SHARES
) -> Predictor:
    """Builds a predictor from exported files and their metadata.

    Args:
        path: exported folder, or its ``.onnx`` file, which also works without the other files. The files are
            compared with the digests in the folder's ``inference_config.json``, if it has digests.
        trust: True to run the program of another exporter.
        shares: what is asked beside the best classes. A share that is None is that of the metadata.

    Raises:
        CheckpointError, DataError: the files can't be used, are damaged, or can't answer what is asked.
    """
    if (problem := url_problem(path)) is not None:
        raise DataError(problem)
    try:
        return _whole_predictor(Path(path), trust=trust, shares=shares)
    except ReplacedError:  # an export to the same folder has ended in between
        return _whole_predictor(Path(path), trust=trust, shares=shares)


def _whole_predictor(path: Path, *, trust: bool, shares: AnswerShares) -> Predictor:
    """Builds a predictor. Raises ReplacedError if the files are replaced in the meantime."""
    if path.suffix.lower() == ".onnx":
        parts = metadata_beside(path)
        metadata = parts or _read_onnx_metadata(path, trust=trust)
    else:
        metadata = parts = read_metadata(path)
    host_transforms, stage = split_for_device(build_transforms(metadata.transforms))
    predictor = Predictor(
        host_transforms,
        file_runner(
            path,
            stage,
            preprocesses=metadata.preprocesses,
            class_num=metadata.class_num,
            metadata=parts,
            trust=trust,
        ),
        names=metadata.class_names,
        gives_logits=metadata.gives_logits,
        description=f"{path}: {metadata.describe()}",
        model=metadata.model,
        threshold=metadata.threshold,
        calibration=metadata.calibration,
        no_limits="" if metadata.calibration else f"{path}: {NO_CALIBRATION}; {_EXPORT_AGAIN}",
    )
    return _limited(predictor, shares.or_else(metadata.shares))


def _read_onnx_metadata(file: Path, *, trust: bool) -> ExportMetadata:
    """Reads the metadata of an ``.onnx`` file. Older versions wrote it to a JSON file in the same folder."""
    text = onnx_metadata(file, trust=trust).get(METADATA_KEY)
    if text is None:
        return read_metadata(file.parent)
    try:
        return parse_metadata(read_json(text.encode()), str(file))
    except ValueError:
        raise DataError(f"{file}: its metadata is damaged") from None


def infer(
    config: Config | None = None,
    images: str | Sequence[str] = (),
    *,
    exported: str | Path | None = None,
    topk: int | None = None,
    batch_size: int | None = None,
    tta: str | Sequence[str] | None = None,
    unknown_share: float | None = None,
    coverage: float | None = None,
    trust: bool = False,
) -> list[Prediction]:
    """Predicts the classes of image files.

    Args:
        config: config of the network. With ``exported``, it only gives the images, ``topk`` and the batch
            size. None for no config.
        images: file, folder or pattern, or several of them; empty for ``Infer.infer_imgs``.
        exported: exported folder, or its ``.onnx`` file, to run instead of the config's network.
        topk: number of classes in a prediction; None for ``Infer.PostProcess.topk``.
        batch_size: images per batch; None for ``Infer.batch_size``.
        tta: views whose probabilities are averaged, as in ``Predictor.predict``; None for the image alone.
        unknown_share: largest share of known images that are turned away, as in ``Predictor.with_limits``;
            None for ``Infer.PostProcess.unknown_share``, or else for that of the exported files.
        coverage: coverage of the sets of classes, as in ``Predictor.with_limits``; None for
            ``Infer.PostProcess.coverage``, or else for that of the exported files.
        trust: True to run exported files that another exporter has written; see ``load``.

    Returns:
        A prediction for each file, in the order of the paths. If a file can't be read, or if the network's
        output for it is not finite, its prediction has an ``error``.

    Raises:
        ConfigError, CheckpointError, DataError, OSError: the images, the weights, or the exported files can't
            be used.
    """
    files = _files_to_predict(config, images)
    shares = AnswerShares(unknown_share, coverage)
    predictor = _predictor(config, exported, count=len(files), trust=trust, shares=shares)
    default_topk, default_batch_size = _topk_and_batch_size(config)
    topk = default_topk if topk is None else topk
    batch_size = default_batch_size if batch_size is None else batch_size
    return predictor.predict(files, topk, batch_size, tta=tta)


def print_predictions(
    config: Config | None,
    images: str | Sequence[str] = (),
    *,
    output: Output,
    exported: str | None = None,
    tta: str | None = None,
    unknown_share: float | None = None,
    coverage: float | None = None,
    trust: bool = False,
) -> int:
    """Writes predictions as they are computed, and files without one to standard error: ``ppxcls infer``.

    Args:
        config: config of the network, as for ``infer``.
        images: files, folders or patterns; empty for ``Infer.infer_imgs``.
        output: what is written, and how.
        exported: exported folder, or its ``.onnx`` file, to run instead of the config's network.
        tta: views whose probabilities are averaged, as in ``Predictor.predict``; None for the image alone.
        unknown_share: largest share of known images that are turned away, as for ``infer``.
        coverage: coverage of the sets of classes, as for ``infer``.
        trust: True to run exported files that another exporter has written.

    Returns:
        Number of files that could not be predicted.

    Raises:
        ConfigError, CheckpointError, DataError, OSError: as in ``infer``.
    """
    set_up_logging(stream=sys.stderr)  # predictions go to standard output
    files = _files_to_predict(config, images)
    predictor = _predictor(
        config,
        exported,
        count=len(files),
        trust=trust,
        features=output.features is not None,
        shares=AnswerShares(unknown_share, coverage),
    )
    if tta is not None:
        predictor = predictor.with_views(tta)
    logger.info(predictor.description)
    if predictor.limits.description:
        logger.info(predictor.limits.description)
    topk, batch_size = _topk_and_batch_size(config)
    return write_output_of(predictor, files, output=output, topk=topk, batch_size=batch_size)


def _files_to_predict(config: Config | None, images: str | Sequence[str]) -> list[str]:
    paths = [images] if isinstance(images, str) else list(images)
    path, within = images_of(config) if config and not paths else (None, None)
    if path:
        return find_images(path, within)
    if not paths:
        message = "expected a file, a folder or a pattern, received null"
        raise config.where("Infer.infer_imgs").error(message) if config else DataError(f"images: {message}")
    return [file for path in paths for file in find_images(path)]


def _predictor(
    config: Config | None,
    exported: str | Path | None,
    *,
    count: int,
    trust: bool,
    features: bool = False,
    shares: AnswerShares,
) -> Predictor:
    """Returns the predictor of the exported files, or else of the config's network, for ``count`` images."""
    if exported:
        if features:
            raise DataError(f"{exported}: {_NO_FEATURES}")
        if config:
            _refuse_overrides(config)
            if config.is_override("Global.device"):  # not the one of the YAML, which this machine may lack
                start_processes(config)
        if config:
            shares = shares.or_else(shares_of(config))
        return exported_predictor(exported, trust=trust, shares=shares)
    if config is None:
        raise DataError("expected a config, or exported files")
    return trained_predictor(config, count, features=features, shares=shares)


def _topk_and_batch_size(config: Config | None) -> tuple[int, int]:
    section = config.Infer if config else None
    topk = section.PostProcess.topk if section and section.PostProcess else DEFAULT_TOPK
    return topk, section.batch_size if section else 10


def _refuse_overrides(config: Config) -> None:
    """Raises ConfigError for an override that exported files can't follow.

    Exported files contain their own weights, transforms and class names.
    """
    for key in map(".".join, config.overrides):
        if not key.startswith(_KEYS_WITH_EXPORTED_FILES):
            raise config.where(key).error(
                "exported files have their own; export again to change it, or leave out --exported"
            )
