"""Predicts with a config, a run or exported files, and exports networks. Only this module reads ``Infer``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from paddle import nn
from tqdm import tqdm

from ppxcls.build.choices import (
    class_names_for,
    class_num,
    describe,
    network_classes,
    transforms_for,
    weights_for,
)
from ppxcls.build.class_order import classes_beside, mapping_between
from ppxcls.build.data import build_dataset
from ppxcls.build.network import build_model, build_network
from ppxcls.build.start import start_processes
from ppxcls.checkpoints.files import State, write_copied_manifest
from ppxcls.config.load import load_config
from ppxcls.config.registry import Block
from ppxcls.config.sections import Config, to_plain
from ppxcls.data.dataset import Dataset, ImageNetDataset
from ppxcls.data.errors import DataError
from ppxcls.data.label_mapping import ClassNames
from ppxcls.data.read_file import read_file
from ppxcls.data.transforms import Compose, DeviceStage, build_transforms, split_for_device
from ppxcls.deploy.export import export_model
from ppxcls.deploy.images import find_images
from ppxcls.deploy.int8 import check_packages, quantise
from ppxcls.deploy.metadata import METADATA_FILE, METADATA_KEY, ExportMetadata, parse_metadata, read_metadata
from ppxcls.deploy.portable import PortableRunner, file_runner
from ppxcls.deploy.predict import DEFAULT_TOPK, Prediction, Predictor
from ppxcls.deploy.runners import Runner, network_runner, onnx_metadata
from ppxcls.deploy.writer import Format, Writer
from ppxcls.models.weights import (
    load_weights,
    manifest_of,
    model_state,
    save_weights,
    set_weights,
    state_tensors,
    weights_file,
)
from ppxcls.packed.dataset import PackedDataset, pack_folder
from ppxcls.packed.storage import is_url
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import whole_text_file
from ppxcls.system.logs import logger, set_up_logging
from ppxcls.system.paths import printable, url_problem

# Keys that may be overridden together with exported files, which contain all other settings.
_KEYS_WITH_EXPORTED_FILES = (
    "Global.device",
    "Infer.infer_imgs",
    "Infer.batch_size",
    "Infer.PostProcess.topk",
)


def load(path: str | Path | Config, image_count: int = 0) -> Predictor:
    """Loads a trained run or an exported model for prediction.

    Example: ``ppxcls.load("output/Xception41").predict(["a.jpg"])``.

    Args:
        path: run folder, its ``config.yaml``, another config, exported folder, or exported ``.onnx`` file.
        image_count: number of images to predict, if known; 0 if unknown. On a CPU, the network of a run is
            compiled at the first batch if there are many images.

    Raises:
        ConfigError, CheckpointError, DataError: the model can't be used.
    """
    if isinstance(path, Config):
        return trained_predictor(path, image_count)
    if (problem := url_problem(path)) is not None:
        raise DataError(problem)
    path = Path(path)
    if path.suffix == ".onnx" or (path / METADATA_FILE).is_file():
        return exported_predictor(path)
    return trained_predictor(load_config(path), image_count)


def trained_predictor(config: Config, image_count: int = 0) -> Predictor:
    """Builds a predictor from a config, with the weights of ``weights_for``.

    Args:
        config: config of a run or a network.
        image_count: number of images to predict, if known; see ``load``.

    Raises:
        ConfigError: the config names no weights, or the device does not exist.
        CheckpointError: the weights can't be used.
        DataError: the class names can't be used.
    """
    weights = weights_for(config, "infer")
    assert weights
    blocks, class_names = transforms_for(config), class_names_for(config, "infer", weights)
    start_processes(config)
    host_transforms, stage = split_for_device(build_transforms(blocks))
    network = build_network(config, "infer", weights)
    runner = _portable_runner(_network_settings(config), network, stage, image_count)
    return Predictor(
        host_transforms,
        runner,
        names=class_names,
        gives_logits=True,
        description=describe(config, weights, blocks, class_names),
    )


def exported_predictor(path: str | Path) -> Predictor:
    """Builds a predictor from exported files and their metadata.

    Args:
        path: exported folder, or its ``.onnx`` file, which also works without the other files.

    Raises:
        CheckpointError, DataError: the files can't be used.
    """
    if (problem := url_problem(path)) is not None:
        raise DataError(problem)
    path = Path(path)
    metadata = _read_onnx_metadata(path) if path.suffix == ".onnx" else read_metadata(path)
    host_transforms, stage = split_for_device(build_transforms(metadata.transforms))
    return Predictor(
        host_transforms,
        file_runner(path, stage, preprocesses=metadata.preprocesses),
        names=metadata.class_names,
        gives_logits=metadata.gives_logits,
        description=f"{path}: {metadata.describe()}",
    )


def _read_onnx_metadata(file: Path) -> ExportMetadata:
    """Reads the metadata of an ``.onnx`` file. Older versions wrote it to a JSON file in the same folder."""
    text = onnx_metadata(file).get(METADATA_KEY)
    if text is None:
        return read_metadata(file.parent)
    try:
        return parse_metadata(json.loads(text), str(file))
    except (ValueError, RecursionError):
        raise DataError(f"{file}: its metadata is damaged") from None


def _network_settings(config: Config) -> dict[str, Any]:
    """Returns the part of a config from which another process builds the same network, without weights."""
    arch = {key: value for key, value in to_plain(config.Arch).items() if key != "pretrained"}
    return {"Global": {"device": config.Global.device, "plugins": config.Global.plugins}, "Arch": arch}


def _portable_runner(
    settings: dict[str, Any], network: nn.Layer, stage: DeviceStage, image_count: int
) -> Runner:
    def arguments() -> tuple[Any, ...]:
        return settings, model_state(network), stage, image_count

    return PortableRunner(network_runner(network, stage, image_count), _rebuilt_network_runner, arguments)


def _rebuilt_network_runner(
    settings: dict[str, Any], state: State, stage: DeviceStage, image_count: int
) -> Runner:
    """Returns a runner of a network with the weights of a pickle."""
    config = load_config(settings)
    start_processes(config)
    network = build_network(config, "infer", None)
    set_weights(network, state, Path("the pickle"))
    return _portable_runner(settings, network, stage, image_count)


def convert_weights(source: str, name: str, output: str, class_num: int = 1000) -> int:
    """Converts weights of timm, Keras or this package.

    What a checkpoint's manifest tells about its weights is written beside the output.

    Args:
        source: weights file: ``.safetensors``, ``.pth``, ``.weights.h5``, ``.keras`` or ``.pdparams``.
        name: name of the network.
        output: file to write: ``.pdparams`` or ``.safetensors``.
        class_num: number of classes.

    Returns:
        Number of tensors.

    Raises:
        ConfigError: there is no network with this name.
        CheckpointError: the source can't be used, or does not match the network key by key.
        OSError: the output can't be written.
    """
    model = build_model(name, class_num=class_num)
    load_weights(model, source)
    save_weights(model, Path(output))
    if manifest := manifest_of(weights_file(source)):
        write_copied_manifest(Path(output), manifest)
    return len(state_tensors(model))


def export(
    config: Config,
    formats: Sequence[str],
    *,
    softmax: bool = True,
    preprocess: bool = True,
    fold: bool = False,
    int8: str | None = None,
) -> dict[str, float]:
    """Exports the network, with the weights of ``weights_for``, to ``Global.save_inference_dir``.

    Args:
        config: config of a run.
        formats: formats to write: ``paddle``, ``onnx``.
        softmax: True for probabilities as output, False for logits.
        preprocess: True for a graph that takes uint8 images and normalises them.
        fold: True to fold batch norms into the convolutions before them.
        int8: list of images, or packed data set, to calibrate 8-bit quantisation on; see ``quantise``. None
            for no quantisation. The list's paths are relative to the ``image_root`` of the evaluation data if
            it has one, or else to the list's own folder.

    Returns:
        Largest difference from the network, by format.

    Raises:
        ConfigError, CheckpointError, DataError, OSError: as in ``export_model``, ``quantise`` and
            ``trained_predictor``.
    """
    set_up_logging()
    weights = weights_for(config, "export")
    assert weights
    blocks, class_names = transforms_for(config), class_names_for(config, "export", weights)
    start_processes(config)
    logger.info(describe(config, weights, blocks, class_names))
    network = build_network(config, "export", weights)
    network.eval()
    host_transforms, stage = split_for_device(build_transforms(blocks))
    metadata = ExportMetadata(
        model=config.Arch.name,
        weights=str(weights),
        transforms=to_plain(blocks),
        class_names=class_names,
        class_num=class_num(config),
        preprocesses=preprocess,
        gives_logits=not softmax,
    )
    quantise_export = None
    if int8 is not None:
        classes = network_classes(config, "export", weights)
        calibration, evaluation = _quantisation_data(
            config, int8, blocks=blocks, formats=formats, classes=classes
        )
        quantise_export = partial(quantise, metadata=metadata, calibration=calibration, evaluation=evaluation)
    return export_model(
        network,
        stage,
        images=_sample_images(config, host_transforms),
        folder=export_folder(config),
        metadata=metadata,
        formats=formats,
        fold=fold,
        quantise=quantise_export,
    )


def export_folder(config: Config) -> Path:
    """Returns the folder that ``export`` writes to."""
    return Path(config.Global.save_inference_dir)


def _quantisation_data(
    config: Config,
    path: str,
    *,
    blocks: Sequence[Block],
    formats: Sequence[str],
    classes: ClassNames | None,
) -> tuple[Dataset, Dataset]:
    """Returns the calibration and evaluation images for 8-bit quantisation.

    Both have the transforms of the exported file, and labels of the network's classes.

    Raises:
        ConfigError: the config has no evaluation data, or its data can't be used.
        CheckpointError: a package is missing.
        DataError: the ONNX file is not exported too, or the images can't be used.
    """
    check_packages()
    if "onnx" not in formats:
        raise DataError("INT8 is made from the ONNX file: export it too")
    if not (config.DataLoader and config.DataLoader.Eval):
        raise config.where("DataLoader.Eval").error(
            "the section is missing; it is needed to measure the accuracy loss of INT8"
        )
    evaluation = build_dataset(config, "Eval", classes, patience=0)
    calibration: Dataset
    if is_url(path) or Path(path).is_dir():
        calibration = PackedDataset(path, list(blocks))
        names_folder = pack_folder(path, None)
    else:
        root = evaluation.image_root if isinstance(evaluation, ImageNetDataset) else Path(path).parent
        calibration = ImageNetDataset(str(root), path, transform_ops=list(blocks))
        names_folder = Path(path).parent
    calibration_classes = classes_beside(names_folder) if names_folder else None
    if calibration_classes and classes and (mapping := mapping_between(calibration_classes, classes)):
        calibration.map_labels(mapping)
    return calibration, evaluation.with_transforms(list(blocks))


def _sample_images(config: Config, host_transforms: Compose, count: int = 8) -> Array:
    """Returns images to compare the exported files on.

    They are real images if there are any, or else random ones, with a warning.
    """
    images: list[Array] = []
    for name, load_image in _sample_sources(config, 4 * count):
        try:
            image = load_image(host_transforms)
            if not images or image.shape == images[0].shape:
                images.append(image)
        except (OSError, ValueError, DataError) as error:
            logger.warning(f"{name}: {error}")
        if len(images) == count:
            return np.stack(images)
    if not images:
        images = [host_transforms(_random_image(seed)) for seed in range(count)]
        size = f"{list(images[0].shape)} after the transforms"
        logger.warning(
            f"no real images are available, so the exported files are compared on random ones, {size}; "
            "set Infer.infer_imgs"
        )
    return np.stack(images)


def _sample_sources(config: Config, max_count: int) -> list[tuple[str, Callable[[Compose], Array]]]:
    """Returns names and loaders of ``Infer.infer_imgs``, or else of the first evaluation images.

    The list is empty if both are missing.

    Raises:
        DataError: the evaluation data exists, but can't be used.
    """
    if config.Infer and config.Infer.infer_imgs:
        try:
            return [(file, partial(_load_image, file)) for file in find_images(config.Infer.infer_imgs)]
        except (DataError, OSError) as error:  # for example in a YAML from another machine
            logger.warning(f"Infer.infer_imgs: {error}")
    if config.DataLoader and config.DataLoader.Eval:
        block = config.DataLoader.Eval.dataset
        locations = [block[key] for key in ("cls_label_path", "pack") if key in block]
        if all(is_url(place) or Path(place).exists() for place in locations):
            # Only the images are used. So it does not matter what the labels mean.
            dataset = build_dataset(config, "Eval", None, patience=0)
            return [
                (dataset.path(i), partial(_load_sample, dataset, i))
                for i in range(min(len(dataset), max_count))
            ]
    return []


def _load_sample(dataset: Dataset, index: int, transform: Compose) -> Array:
    return dataset.load(index, transform=transform)


def _random_image(seed: int) -> bytes:
    """Returns a PNG file of smooth random colours.

    Noise of single pixels would show little about a network that was trained on photographs.
    """
    coarse_image = np.random.default_rng(seed).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    return cv2.imencode(".png", cv2.resize(coarse_image, (2048, 1536), interpolation=cv2.INTER_CUBIC))[
        1
    ].tobytes()


def _load_image(file: str, transform: Compose) -> Array:
    return transform(read_file(file))


def infer(
    config: Config | None = None,
    images: str | Sequence[str] = (),
    *,
    exported: str | Path | None = None,
    topk: int | None = None,
    batch_size: int | None = None,
) -> list[Prediction]:
    """Predicts the classes of image files.

    Args:
        config: config of the network. With ``exported``, it only gives the images, ``topk`` and the batch
            size. None for no config.
        images: file, folder or pattern, or several of them; empty for ``Infer.infer_imgs``.
        exported: exported folder, or its ``.onnx`` file, to run instead of the config's network.
        topk: number of classes in a prediction; None for ``Infer.PostProcess.topk``.
        batch_size: images per batch; None for ``Infer.batch_size``.

    Returns:
        A prediction for each file, in the order of the paths. If a file can't be read, or if the network's
        output for it is not finite, its prediction has an ``error``.

    Raises:
        ConfigError, CheckpointError, DataError, OSError: the images, the weights, or the exported files can't
            be used.
    """
    files = _files_to_predict(config, images)
    predictor = _predictor(config, exported, len(files))
    default_topk, default_batch_size = _topk_and_batch_size(config)
    topk = default_topk if topk is None else topk
    batch_size = default_batch_size if batch_size is None else batch_size
    return predictor.predict(files, topk, batch_size)


def print_predictions(
    config: Config | None,
    images: str | Sequence[str] = (),
    *,
    kind: Format = "paddleclas",
    exported: str | None = None,
    output: str | None = None,
) -> int:
    """Writes predictions as they are computed, and files without one to standard error: ``ppxcls infer``.

    Args:
        config: config of the network, as for ``infer``.
        images: files, folders or patterns; empty for ``Infer.infer_imgs``.
        kind: output format; see ``Writer``.
        exported: exported folder, or its ``.onnx`` file, to run instead of the config's network.
        output: file for the predictions; None for standard output.

    Returns:
        Number of files that could not be predicted.

    Raises:
        ConfigError, CheckpointError, DataError, OSError: as in ``infer``.
    """
    set_up_logging(stream=sys.stderr)  # predictions go to standard output
    files = _files_to_predict(config, images)
    predictor = _predictor(config, exported, len(files))
    logger.info(predictor.description)
    topk, batch_size = _topk_and_batch_size(config)
    failures = 0
    start = time.perf_counter()
    with whole_text_file(Path(output)) if output else nullcontext(sys.stdout) as stream:
        predictions, writer = predictor.stream(files, topk, batch_size), Writer(kind, stream)
        with tqdm(total=len(files), unit="image", disable=None, leave=False) as bar:
            while batch := list(islice(predictions, batch_size)):
                writer.write([prediction for prediction in batch if not prediction.error])
                failures += _print_errors(batch)
                bar.update(len(batch))
    rate = (len(files) - failures) / (time.perf_counter() - start)
    failure_note = f", {failures} could not be predicted" if failures else ""
    print(f"{len(files) - failures} images, {rate:.1f} images/s{failure_note}", file=sys.stderr)
    return failures


def _files_to_predict(config: Config | None, images: str | Sequence[str]) -> list[str]:
    section = config.Infer if config else None
    paths = [images] if isinstance(images, str) else list(images)
    if not paths and section and section.infer_imgs:
        paths = [section.infer_imgs]
    if not paths:
        message = "expected a file, a folder or a pattern, received null"
        raise config.where("Infer.infer_imgs").error(message) if config else DataError(f"images: {message}")
    return [file for path in paths for file in find_images(path)]


def _predictor(config: Config | None, exported: str | Path | None, count: int) -> Predictor:
    """Returns the predictor of the exported files, or else of the config's network, for ``count`` images."""
    if exported:
        if config:
            _refuse_overrides(config)
            if config.is_override("Global.device"):  # not the one of the YAML, which this machine may lack
                start_processes(config)
        return exported_predictor(exported)
    if config is None:
        raise DataError("expected a config, or exported files")
    return trained_predictor(config, count)


def _topk_and_batch_size(config: Config | None) -> tuple[int, int]:
    section = config.Infer if config else None
    topk = section.PostProcess.topk if section and section.PostProcess else DEFAULT_TOPK
    return topk, section.batch_size if section else 10


def _print_errors(predictions: Sequence[Prediction]) -> int:
    """Prints the errors and returns their number."""
    errors = [prediction for prediction in predictions if prediction.error]
    for prediction in errors:
        print(printable(f"{prediction.file}: {prediction.error}"), file=sys.stderr)
    return len(errors)


def _refuse_overrides(config: Config) -> None:
    """Raises ConfigError for an override that exported files can't follow.

    Exported files contain their own weights, transforms and class names.
    """
    for key in map(".".join, config.overrides):
        if not key.startswith(_KEYS_WITH_EXPORTED_FILES):
            raise config.where(key).error(
                "exported files have their own; export again to change it, or leave out --exported"
            )
