"""Metadata of an exported model: ``inference_config.json``, PaddleX's ``inference.yml``, ONNX metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ppxcls.calibration.record import Calibration
from ppxcls.data.class_names import describe_classes
from ppxcls.data.errors import DataError
from ppxcls.data.transforms import prepared_images
from ppxcls.deploy.answer_limits import NO_SHARES, AnswerShares
from ppxcls.deploy.threshold import Threshold
from ppxcls.system.atomic_files import read_regular, reason_of, write_text
from ppxcls.system.json_text import read_json
from ppxcls.system.logs import logger
from ppxcls.system.paths import bounded
from ppxcls.system.sealed_json import SEAL_KEY, is_intact

METADATA_FILE = "inference_config.json"
METADATA_KEY = "ppxcls"  # key of the same JSON in an ONNX file
_MAX_CLASSES = 10_000_000
MAX_METADATA_BYTES = 12 << 20  # 100,000 names of 100 characters; parsing the worst such text takes 2 s
_MAX_SHOWN_NAMES = 20  # more than a description shows
_MAX_SHOWN_NAME, _MAX_SHOWN_WEIGHTS, _MAX_DESCRIPTION = 100, 250, 400  # characters
_POST_PROCESS = "PostProcess"  # key of the threshold
_LIMITS = "limits"  # key of the shares that limits are for
_SHA256 = re.compile("[0-9a-f]{64}")
_PADDLEX_MODEL = "ResNet50"
# Transforms that PaddleX has, and keys that it lacks with the value that changes nothing.
_PADDLEX_TRANSFORMS: dict[str, dict[str, Any]] = {
    "DecodeImage": {"channels": 3, "bits": 8},
    "ResizeImage": {"keep_ratio": False, "fill_value": 0.0},
    "CropImage": {},
    "NormalizeImage": {},
    "ToCHWImage": {},
}


@dataclass
class ExportMetadata:
    """All information that is needed to use an exported model.

    Attributes:
        model: name of the network.
        weights: origin of the weights.
        transforms: transforms of the images, as in a config.
        class_names: class names in the order of their ids; empty for no names.
        class_num: number of classes.
        preprocesses: True if the graph normalises, so that the input is uint8 [N, H, W, C], or float32 for
            values of 16 bits. Otherwise the input is normalised float32 [N, C, H, W].
        gives_logits: True if the output is logits, not probabilities.
        threshold: threshold that chooses between two classes; None for the best classes.
        parts: size and SHA-256 of each file of the export, by name; empty for an export of an earlier
            version, and for the metadata inside an ONNX file.
        calibration: calibration of the scores. The graph divides by its temperature if its output is
            probabilities. None for scores that are not calibrated.
        shares: what a prediction says beside its best classes, by limits of the calibration.
    """

    model: str
    weights: str
    transforms: list[Any]
    class_names: list[str]
    class_num: int
    preprocesses: bool = True
    gives_logits: bool = False
    threshold: Threshold | None = None
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibration: Calibration | None = None
    shares: AnswerShares = NO_SHARES

    def as_dict(self) -> dict[str, Any]:
        """Returns the entries of the JSON."""
        calibration = {"calibration": self.calibration.to_json()} if self.calibration else {}
        post_process = {} if self.threshold is None else {_POST_PROCESS: self.threshold.as_dict()}
        limits = {_LIMITS: self.shares.as_dict()} if self.shares else {}
        return {
            "model": self.model,
            "weights": self.weights,
            "transforms": self.transforms,
            "class_names": {str(index): name for index, name in enumerate(self.class_names)},
            "class_num": self.class_num,
            "output": "logits" if self.gives_logits else "probabilities",
            "preprocessing in the graph": self.preprocesses,
            **calibration,
            **post_process,
            **limits,
        }

    @property
    def graph_temperature(self) -> float:
        """The divisor of the logits in the graph; 1 if its output is logits."""
        return 1.0 if self.gives_logits or self.calibration is None else self.calibration.temperature

    def describe(self) -> str:
        """Returns one line of bounded length: network, weights, transforms of the images, classes."""
        names = [bounded(name, _MAX_SHOWN_NAME) for name in self.class_names[:_MAX_SHOWN_NAMES]]
        model, weights = bounded(self.model, _MAX_SHOWN_NAME), bounded(self.weights, _MAX_SHOWN_WEIGHTS)
        images, classes = prepared_images(self.transforms), describe_classes(self.class_num, names)
        return bounded(f"{model} exported from {weights}, {images}, {classes}", _MAX_DESCRIPTION)


def write_paddlex_file(folder: Path, metadata: ExportMetadata) -> None:
    """Writes PaddleX's ``inference.yml``, unless PaddleX can't prepare images as the transforms do.

    Args:
        folder: folder of Paddle's files, with float input, because PaddleX always normalises.
        metadata: metadata of the exported files.

    Raises:
        OSError: the file can't be written.
    """
    if (reason := _unknown_to_paddlex(metadata.transforms)) is not None:
        logger.warning(f"inference.yml is not written, because PaddleX has no {reason}")
        return
    write_text(folder / "inference.yml", _paddlex_yaml(metadata))


def _unknown_to_paddlex(transforms: Sequence[Mapping[str, Any]]) -> str | None:
    """Returns the first transform or key in use that PaddleX lacks; None if there is none."""
    for op in transforms:
        ((name, arguments),) = op.items()
        if name not in _PADDLEX_TRANSFORMS:
            return str(name)
        for key, usual_value in _PADDLEX_TRANSFORMS[name].items():
            if (arguments or {}).get(key, usual_value) != usual_value:
                return f"{name}: {key}"
    return None


def read_metadata(folder: Path) -> ExportMetadata:
    """Reads the metadata of an export.

    Raises:
        DataError: the folder or the file is missing, or the file contains no valid metadata, or is damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of an exported model")
    file = folder / METADATA_FILE
    try:
        values = read_json(read_regular(file, MAX_METADATA_BYTES))
        has_digest = isinstance(values, dict) and (SEAL_KEY in values or "parts" in values)
        is_damaged = has_digest and not is_intact(values)
    except FileNotFoundError:
        raise DataError(f"{folder}: no {METADATA_FILE} in it, so it is not an exported model") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: invalid metadata: {type(error).__name__}: {reason_of(error)}") from None
    if is_damaged:
        raise DataError(f"{file}: is damaged or was changed: its SHA-256 is not the one in it; export again")
    return parse_metadata(values, str(file))


def parse_metadata(values: Any, source: str) -> ExportMetadata:
    """Checks the entries of a metadata file and returns them.

    Version 0.2.0 wrote neither ``weights`` nor ``class_num``.

    Raises:
        DataError: an entry is missing or has another type, or there is not one name for each class.
    """
    required_types = {
        "model": str,
        "transforms": list,
        "class_names": dict,
        "output": str,
        "preprocessing in the graph": bool,
    }
    if not isinstance(values, dict):
        raise DataError(f"{source}: invalid metadata: expected a JSON object")
    for key, required_type in required_types.items():
        if not isinstance(values.get(key), required_type):
            received_type = type(values.get(key)).__name__
            raise DataError(
                f"{source}: invalid metadata: expected {required_type.__name__} as {key!r}, "
                f"received {received_type}"
            )
    names, count = values["class_names"], values.get("class_num", len(values["class_names"]))
    if (
        not isinstance(count, int)
        or isinstance(count, bool)
        or not 0 <= count < _MAX_CLASSES
        or not values["transforms"]
    ):
        raise DataError(
            f"{source}: invalid metadata: expected a number of classes and transforms, "
            f"received {type(count).__name__} as 'class_num' and {len(values['transforms'])} transforms"
        )
    if names and list(names) != [str(i) for i in range(count)]:
        raise DataError(
            f"{source}: expected the names of {count} classes with ids from 0, received {len(names)}"
        )
    parts = values.get("parts", {})
    if not isinstance(parts, dict) or not all(map(_is_part, parts.items())):
        raise DataError(f"{source}: invalid metadata: expected size and SHA-256 of each file as 'parts'")
    key = "calibration"
    try:
        calibration = Calibration.from_json(values[key]) if key in values else None
        if calibration:
            calibration.check_classes(count)
        key = _LIMITS
        shares = AnswerShares.from_dict(values.get(key, {}))
    except ValueError as error:
        raise DataError(f"{source}: invalid metadata: {key}: {error}") from None
    return ExportMetadata(
        model=values["model"],
        weights=str(values.get("weights", "unknown weights")),
        transforms=values["transforms"],
        class_names=[str(name) for name in names.values()],
        class_num=int(count),
        preprocesses=values["preprocessing in the graph"],
        gives_logits=values["output"] == "logits",
        threshold=_threshold_in(values, source, count),
        parts=parts,
        calibration=calibration,
        shares=shares,
    )


def _threshold_in(values: dict[str, Any], source: str, class_num: int) -> Threshold | None:
    """Returns the threshold of a metadata file; None if it has none. Raises DataError if it is invalid."""
    if values.get(_POST_PROCESS) is None:
        return None
    try:
        threshold = Threshold.from_dict(values[_POST_PROCESS])
    except ValueError as error:
        raise DataError(f"{source}: invalid metadata: {_POST_PROCESS}: {error}") from None
    if class_num != 2:
        raise DataError(f"{source}: invalid metadata: a threshold is for 2 classes, received {class_num:,}")
    return threshold


def _is_part(pair: tuple[Any, Any]) -> bool:
    """True if a pair is the name of a file in the export's own folder, and its size and digest."""
    name, part = pair
    return (
        re.fullmatch(r"inference(\.\w+)+", name) is not None
        and isinstance(part, dict)
        and type(part.get("size")) is int
        and isinstance(part.get("sha256"), str)
        and _SHA256.fullmatch(part["sha256"]) is not None
    )


def _paddlex_yaml(metadata: ExportMetadata) -> str:
    """Returns the YAML that PaddleX 3 reads beside ``inference.json`` and ``inference.pdiparams``."""
    ops: list[dict[str, Any]] = []
    for op in metadata.transforms:
        ((name, arguments),) = op.items()
        arguments = {
            key: list(v) if isinstance(v, tuple) else v
            for key, v in (arguments or {}).items()
            if v is not None and key not in _PADDLEX_TRANSFORMS[name]
        }
        if name != "DecodeImage":
            ops.append({name: arguments or None})
    if not any("ToCHWImage" in op for op in ops):
        ops.append({"ToCHWImage": None})
    names: Sequence[str] = metadata.class_names or [str(i) for i in range(metadata.class_num)]
    content = {
        "Global": {"model_name": _PADDLEX_MODEL},
        "PreProcess": {"transform_ops": ops},
        "PostProcess": {"Topk": {"topk": min(5, metadata.class_num), "label_list": list(names)}},
    }
    comment = (
        f"# {metadata.model}. PaddleX has no Xception; this name of its table selects image classification.\n"
    )
    return comment + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
