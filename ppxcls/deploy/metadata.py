"""Metadata of an exported model: ``inference_config.json``, PaddleX's ``inference.yml``, ONNX metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ppxcls.data.class_names import describe_classes
from ppxcls.data.errors import DataError
from ppxcls.data.transforms import prepared_images
from ppxcls.system.atomic_files import read_regular, write_text
from ppxcls.system.json_text import json_text

METADATA_FILE = "inference_config.json"
METADATA_KEY = "ppxcls"  # key of the same JSON in an ONNX file
_MAX_CLASSES = 10_000_000
_MAX_METADATA_BYTES = 64 << 20  # of the names of all classes
_PADDLEX_MODEL = "ResNet50"


@dataclass
class ExportMetadata:
    """All information that is needed to use an exported model.

    Attributes:
        model: name of the network.
        weights: origin of the weights.
        transforms: transforms of the images, as in a config.
        class_names: class names in the order of their ids; empty for no names.
        class_num: number of classes.
        preprocesses: True if the graph normalises, so that the input is uint8 [N, H, W, 3]. Otherwise the
            input is normalised float32 [N, 3, H, W].
        gives_logits: True if the output is logits, not probabilities.
    """

    model: str
    weights: str
    transforms: list[Any]
    class_names: list[str]
    class_num: int
    preprocesses: bool = True
    gives_logits: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Returns the entries of the JSON."""
        return {
            "model": self.model,
            "weights": self.weights,
            "transforms": self.transforms,
            "class_names": {str(index): name for index, name in enumerate(self.class_names)},
            "class_num": self.class_num,
            "output": "logits" if self.gives_logits else "probabilities",
            "preprocessing in the graph": self.preprocesses,
        }

    def describe(self) -> str:
        """Returns one line: network, weights, transforms of the images, classes."""
        classes = describe_classes(self.class_num, self.class_names)
        return f"{self.model} exported from {self.weights}, {prepared_images(self.transforms)}, {classes}"


def write_metadata(
    folder: Path, metadata: ExportMetadata, facts: Mapping[str, Any], *, has_paddle_files: bool
) -> None:
    """Writes ``inference_config.json`` and, if needed, PaddleX's ``inference.yml``.

    The second file is written next to Paddle's files with float input.

    Args:
        folder: folder of the exported files.
        metadata: metadata of the exported files.
        facts: additional entries for the JSON.
        has_paddle_files: True if the folder contains Paddle's files.

    Raises:
        OSError: a file can't be written.
    """
    text = json_text({**metadata.as_dict(), **facts}, indent=1)
    write_text(folder / METADATA_FILE, text + "\n")
    if has_paddle_files and not metadata.preprocesses:  # PaddleX always normalises
        write_text(folder / "inference.yml", _paddlex_yaml(metadata))


def read_metadata(folder: Path) -> ExportMetadata:
    """Reads the metadata that ``write_metadata`` wrote.

    Raises:
        DataError: the folder or the file is missing, or the file contains no valid metadata.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of an exported model")
    try:
        data = read_regular(folder / METADATA_FILE, _MAX_METADATA_BYTES)
        return parse_metadata(json.loads(data.decode()), str(folder / METADATA_FILE))
    except FileNotFoundError:
        raise DataError(f"{folder}: no {METADATA_FILE} in it, so it is not an exported model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{folder / METADATA_FILE}: invalid metadata: {type(error).__name__}: {error}"
        ) from None


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
            raise DataError(f"{source}: invalid metadata: {key} is {values.get(key)!r:.80}")
    names, count = values["class_names"], values.get("class_num", len(values["class_names"]))
    if (
        not isinstance(count, int)
        or isinstance(count, bool)
        or not 0 <= count < _MAX_CLASSES
        or not values["transforms"]
    ):
        raise DataError(
            f"{source}: invalid metadata: class_num {count!r:.80}, {len(values['transforms'])} transforms"
        )
    if names and list(names) != [str(i) for i in range(count)]:
        raise DataError(
            f"{source}: expected the names of {count} classes with ids from 0, received {len(names)}"
        )
    return ExportMetadata(
        model=values["model"],
        weights=str(values.get("weights", "unknown weights")),
        transforms=values["transforms"],
        class_names=[str(name) for name in names.values()],
        class_num=int(count),
        preprocesses=values["preprocessing in the graph"],
        gives_logits=values["output"] == "logits",
    )


def _paddlex_yaml(metadata: ExportMetadata) -> str:
    """Returns the YAML that PaddleX 3 reads beside ``inference.json`` and ``inference.pdiparams``."""
    ops: list[dict[str, Any]] = []
    for op in metadata.transforms:
        ((name, arguments),) = op.items()
        arguments = {
            key: list(v) if isinstance(v, tuple) else v
            for key, v in (arguments or {}).items()
            if v is not None
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
