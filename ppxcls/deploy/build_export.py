"""Exports the network of a config."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from ppxcls.build.calibration import calibration_for
from ppxcls.build.choices import (
    class_names_for,
    class_num,
    describe,
    network_classes,
    transforms_for,
    weights_for,
)
from ppxcls.build.class_order import classes_beside, mapping_between
from ppxcls.build.data import build_dataset, build_images
from ppxcls.build.network import build_network
from ppxcls.build.start import start_processes
from ppxcls.calibration.record import Calibration
from ppxcls.checkpoints.files import CheckpointError
from ppxcls.config.checks import ConfigError
from ppxcls.config.registry import Block
from ppxcls.config.sections import Config, to_plain
from ppxcls.config.values_of_runs import export_folder_of, images_of
from ppxcls.data.dataset import Dataset, ImageNetDataset
from ppxcls.data.errors import DataError
from ppxcls.data.label_mapping import ClassNames
from ppxcls.data.read_file import read_file
from ppxcls.data.transforms import Compose, build_transforms, split_for_device
from ppxcls.deploy.answer_limits import AnswerShares, limits_of
from ppxcls.deploy.build import no_calibration_of, shares_of, threshold_of
from ppxcls.deploy.export import export_model
from ppxcls.deploy.images import find_images
from ppxcls.deploy.int8 import check_packages, quantise
from ppxcls.deploy.metadata import ExportMetadata
from ppxcls.deploy.runners import EXPORT_HINT, network_runner
from ppxcls.packed.dataset import PackedDataset, pack_folder
from ppxcls.packed.storage import is_url
from ppxcls.system.arrays import Array
from ppxcls.system.logs import logger, set_up_logging
from ppxcls.system.packages import import_problem


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
        softmax: True for probabilities as output, with the temperature of the weights' calibration; False
            for logits, which no temperature has divided.
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
    folder = export_folder(config)
    weights = weights_for(config, "export")
    assert weights
    blocks, class_names = transforms_for(config), class_names_for(config, "export", weights)
    fitted = calibration_for(config, weights)
    calibration = fitted.calibration if fitted else None
    shares = _answered_shares(config, calibration, gives_logits=not softmax)
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
        calibration=calibration,
        threshold=threshold_of(config),
        shares=shares,
    )
    images = _sample_images(config, host_transforms)
    network_runner(network, stage)(images[:1])  # a wrong output is told here, not by the tracing
    quantise_export = None
    if int8 is not None:
        classes = network_classes(config, "export", weights)
        images_of_int8, evaluation = _quantisation_data(
            config, int8, blocks=blocks, formats=formats, classes=classes
        )
        quantise_export = partial(
            quantise, metadata=metadata, calibration=images_of_int8, evaluation=evaluation
        )
    with _named_package_errors(formats):
        return export_model(
            network,
            stage,
            images=images,
            folder=folder,
            metadata=metadata,
            formats=formats,
            fold=fold,
            quantise=quantise_export,
        )


def _answered_shares(config: Config, calibration: Calibration | None, *, gives_logits: bool) -> AnswerShares:
    """Returns the shares of the config, which exported files keep.

    Raises:
        DataError: the exported files could not answer them.
    """
    shares = shares_of(config)
    if not shares:
        return shares
    if calibration is None:
        raise DataError(no_calibration_of(config))
    if shares.unknown_share is not None and not gives_logits:
        raise config.where("Infer.PostProcess.unknown_share").error(
            "the exported files would give probabilities, which have no energy: export with --logits, "
            "or with -o Infer.PostProcess.unknown_share=null"
        )
    limits_of(calibration, shares)
    return shares


@contextlib.contextmanager
def _named_package_errors(formats: Sequence[str]) -> Iterator[None]:
    """Turns an error of a package for ONNX that can't be imported into one that names the package.

    Raises:
        CheckpointError: the package is installed and can't be imported.
    """
    try:
        yield
    except Exception as error:  # a broken package can raise any class of error
        problem = import_problem("onnx", EXPORT_HINT) if "onnx" in formats else None
        if problem is None or isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"writing ONNX needs {problem}") from error


def export_folder(config: Config) -> Path:
    """Returns the folder that ``export`` writes to.

    Raises:
        ConfigError: the config of a run names a folder outside the run's folder.
    """
    return export_folder_of(config)


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
            path, within = images_of(config)
            return [(file, partial(_load_image, file)) for file in find_images(path or "", within)]
        except (ConfigError, DataError, OSError) as error:  # for example in a YAML from another machine
            logger.warning(f"Infer.infer_imgs: {error}")
    if config.DataLoader and config.DataLoader.Eval:
        block = config.DataLoader.Eval.dataset
        locations = [block[key] for key in ("cls_label_path", "pack") if key in block]
        if all(is_url(place) or Path(place).exists() for place in locations):
            dataset = build_images(config, "Eval")
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
