"""From a config to predictions and exported files. Only this module reads ``Infer``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from paddle import nn
from tqdm import tqdm

from ppxcls.build import build_dataset, build_model, build_network, start_processes, weights_for
from ppxcls.config.registry import Block
from ppxcls.config.sections import Config, plain
from ppxcls.data.device import ModelInput
from ppxcls.data.errors import DataError
from ppxcls.data.read_file import read_file
from ppxcls.data.transforms import Compose, build_transforms, split_for_device
from ppxcls.deploy.export import export_model
from ppxcls.deploy.predict import Format, Writer, class_names, find_images, predict, side_file
from ppxcls.deploy.runners import Array, Runner, network_runner, onnx_runner, paddle_runner
from ppxcls.models.weights import load_weights, save_weights
from ppxcls.system.logs import logger, set_up_logging


def trained_network(config: Config, purpose: Literal["infer", "export"]) -> nn.Layer:
    """The network with the weights of ``weights_for``, in evaluation mode.

    Raises:
        ConfigError: no weights are named, or the device is not there.
        CheckpointError: they can't be used.
    """
    weights_for(config, purpose)  # before the device and its processes
    start_processes(config)
    set_up_logging(stream=sys.stderr if purpose == "infer" else None)  # predictions go to standard output
    network = build_network(config, purpose)
    network.eval()
    return network


def _transform_blocks(config: Config) -> list[Block]:
    """The transforms of ``Infer``, or else of the evaluation."""
    if config.Infer and config.Infer.transforms:
        return config.Infer.transforms
    if config.DataLoader and config.DataLoader.Eval:
        return list(config.DataLoader.Eval.dataset.get("transform_ops") or [])
    raise config.where("Infer.transforms").error("the key is missing, and there is no DataLoader.Eval either")


def _names_file(config: Config) -> str | None:
    return config.Infer.PostProcess.class_id_map_file if config.Infer and config.Infer.PostProcess else None


def convert_weights(source: str, name: str, output: str, class_num: int = 1000) -> int:
    """Convert weights of timm, Keras or this package.

    Args:
        source: ``.safetensors``, ``.pth``, ``.weights.h5``, ``.keras`` or ``.pdparams``.
        name: of the network.
        output: ``.pdparams`` or ``.safetensors``.
        class_num: number of classes.

    Returns:
        Number of tensors.

    Raises:
        ConfigError: there is no such network.
        CheckpointError: the source can't be used, or does not fit the network key by key.
        OSError: the output can't be written.
    """
    model = build_model(name, class_num=class_num)
    load_weights(model, source)
    save_weights(model, Path(output))
    return len(model.state_dict())


def export(
    config: Config, formats: Sequence[str], softmax: bool = True, preprocess: bool = True, fold: bool = False
) -> dict[str, float]:
    """Export the network of ``weights_for`` to ``Global.save_inference_dir``. The arguments are those of ``export_model``.

    Raises:
        ConfigError, CheckpointError, DataError, OSError: as there, and as ``trained_network``.
    """
    model = trained_network(config, "export")
    blocks = _transform_blocks(config)
    host, stage = split_for_device(build_transforms(blocks))
    images = _real_images(config, host)
    facts = {"model": config.Arch.name, "transforms": plain(blocks), "class_names": class_names(_names_file(config))}
    folder = Path(config.Global.save_inference_dir)
    return export_model(model, stage, images, folder, facts, formats, softmax, preprocess, fold)


def _real_images(config: Config, host: Any, count: int = 8) -> Array:
    """The first readable images of ``Infer.infer_imgs``, or of the evaluation data, after the host's transforms."""
    loads: list[tuple[str, Callable[[], Array]]]
    if config.Infer and config.Infer.infer_imgs:
        loads = [(file, partial(_load_image, file, host)) for file in find_images(config.Infer.infer_imgs)]
    elif config.DataLoader and config.DataLoader.Eval:
        dataset = build_dataset(config, "Eval", patience=0)
        numbers = range(min(len(dataset), 4 * count))
        loads = [(dataset.path(i), partial(dataset.load, i, transform=host)) for i in numbers]
    else:
        raise config.where("Infer.infer_imgs").error("expected images to compare the exported files on, received null")
    images = []
    for name, load in loads:
        try:
            images.append(load())
        except (OSError, ValueError, DataError) as error:
            logger.warning(f"{name}: {error}")
        if len(images) == count:
            break
    if not images:
        raise DataError(f"none of the images to compare the exported files on can be read, such as {loads[0][0]}")
    return np.stack(images)


def _load_image(file: str, transform: Compose) -> Array:
    return transform(read_file(file))


def infer(config: Config, kind: Format = "paddleclas", exported: str | None = None, output: str | None = None) -> int:
    """Predict the classes of ``Infer.infer_imgs``. Predictions are written as they come, unreadable files to standard error.

    Args:
        config: with ``Infer.infer_imgs``.
        kind: form of the output; see ``Writer``.
        exported: an exported folder, or its ``.onnx`` file, to run instead of the network.
        output: file for the predictions; None for standard output.

    Returns:
        Number of files that could not be read.

    Raises:
        ConfigError, CheckpointError, DataError, OSError: the images, the weights, or the exported files can't be used.
    """
    if not config.Infer or not config.Infer.infer_imgs:
        raise config.where("Infer.infer_imgs").error("expected a file, a folder or a pattern, received null")
    files = find_images(config.Infer.infer_imgs)
    process = config.Infer.PostProcess
    names = class_names(_names_file(config))
    if exported:
        runner, host, softmax, names = _exported(Path(exported), names)
    else:
        host, stage = split_for_device(build_transforms(_transform_blocks(config)))
        runner, softmax = network_runner(trained_network(config, "infer"), stage), True
    topk = process.topk if process else 5
    failed, start = 0, time.perf_counter()
    predictions = predict(files, host, runner, config.Infer.batch_size, topk, softmax)
    with open(output, "w", encoding="utf-8") if output else nullcontext(sys.stdout) as stream:
        writer = Writer(kind, names, stream)
        with tqdm(total=len(files), unit="image", disable=None, leave=False) as bar:
            while batch := list(islice(predictions, config.Infer.batch_size)):
                writer.write([p for p in batch if not p.error])
                for p in batch:
                    if p.error:
                        failed += 1
                        print(f"{p.file}: {p.error}", file=sys.stderr)
                bar.update(len(batch))
    rate = (len(files) - failed) / (time.perf_counter() - start)
    unread = f", {failed} could not be read" if failed else ""
    print(f"{len(files) - failed} images, {rate:.1f} images/s{unread}", file=sys.stderr)
    return failed


def _exported(path: Path, names: dict[int, str]) -> tuple[Runner, Any, bool, dict[int, str]]:
    """Runner, host transforms, whether the runner gives logits, and class names, for an exported folder or ``.onnx`` file."""
    folder = path.parent if path.suffix == ".onnx" else path
    side = side_file(folder)
    host, stage = split_for_device(build_transforms(side["transforms"]))
    runner = onnx_runner(path) if path.suffix == ".onnx" else paddle_runner(folder)
    if not side["preprocessing in the graph"]:
        to_input, bare = ModelInput(stage), runner

        def runner(images: Array) -> Array:
            return bare(to_input(images).numpy())

    stored = {int(key): value for key, value in side["class_names"].items()}
    return runner, host, side["output"] == "logits", stored or names
