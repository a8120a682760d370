"""What an exported model says of itself: ``inference_config.json``, PaddleX's ``inference.yml``, and ONNX metadata."""

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
from ppxcls.system.whole_files import write_text

NAME = "inference_config.json"
METADATA_KEY = "ppxcls"  # of the same JSON in an ONNX file
_MOST_CLASSES = 10_000_000
_PADDLEX_NAME = "ResNet50"


@dataclass
class Exported:
    """All that is needed to use an exported model.

    Attributes:
        model: name of the network.
        weights: where they came from.
        transforms: preparation of the images, as in a config.
        class_names: in the order of the ids; empty for no names.
        class_num: number of classes.
        preprocesses: whether normalisation is in the graph, so that the input is uint8 [N, H, W, 3];
            otherwise it is normalised float32 [N, 3, H, W].
        gives_logits: whether the output is logits, not probabilities.
    """

    model: str
    weights: str
    transforms: list[Any]
    class_names: list[str]
    class_num: int
    preprocesses: bool = True
    gives_logits: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
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
        """One line: network, weights, preparation of the images, classes."""
        classes = describe_classes(self.class_num, self.class_names)
        return f"{self.model} exported from {self.weights}, {prepared_images(self.transforms)}, {classes}"


def write_side_files(folder: Path, exported: Exported, facts: Mapping[str, Any], is_paddle: bool) -> None:
    """Write ``inference_config.json``, and beside Paddle's files with float input PaddleX's ``inference.yml``.

    Args:
        folder: of the exported files.
        exported: what they say of themselves.
        facts: more entries for the JSON.
        is_paddle: whether there are Paddle's files.

    Raises:
        OSError: a file can't be written.
    """
    text = json.dumps({**exported.as_dict(), **facts}, indent=1, ensure_ascii=False)
    write_text(folder / NAME, text + "\n")
    if is_paddle and not exported.preprocesses:  # PaddleX always normalises
        write_text(folder / "inference.yml", _paddlex(exported))


def read_side_file(folder: Path) -> Exported:
    """What ``write_side_files`` wrote.

    Raises:
        DataError: the folder or the file is missing, or it is not such a file.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of an exported model")
    try:
        return parse(json.loads((folder / NAME).read_text(encoding="utf-8")), str(folder / NAME))
    except FileNotFoundError:
        raise DataError(f"{folder}: no {NAME} in it, so it is not what export_model.py writes") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{folder / NAME}: not what export_model.py writes: {type(error).__name__}: {error}"
        ) from None


def parse(values: Any, source: str) -> Exported:
    """The entries of a side file, checked. Version 0.2.0 wrote neither ``weights`` nor ``class_num``.

    Raises:
        DataError: an entry is missing or has another type, or there is not one name for each class.
    """
    kinds = {
        "model": str,
        "transforms": list,
        "class_names": dict,
        "output": str,
        "preprocessing in the graph": bool,
    }
    if not isinstance(values, dict):
        raise DataError(f"{source}: not what export_model.py writes: expected a JSON object")
    for key, kind in kinds.items():
        if not isinstance(values.get(key), kind):
            raise DataError(f"{source}: not what export_model.py writes: {key} is {values.get(key)!r:.80}")
    names, count = values["class_names"], values.get("class_num", len(values["class_names"]))
    if (
        not isinstance(count, int)
        or isinstance(count, bool)
        or not 0 <= count < _MOST_CLASSES
        or not values["transforms"]
    ):
        raise DataError(
            f"{source}: not what export_model.py writes: class_num {count!r:.80}, {len(values['transforms'])} transforms"
        )
    if names and list(names) != [str(i) for i in range(count)]:
        raise DataError(
            f"{source}: expected the names of {count} classes with ids from 0, received {len(names)}"
        )
    return Exported(
        model=values["model"],
        weights=str(values.get("weights", "unknown weights")),
        transforms=values["transforms"],
        class_names=[str(name) for name in names.values()],
        class_num=int(count),
        preprocesses=values["preprocessing in the graph"],
        gives_logits=values["output"] == "logits",
    )


def _paddlex(exported: Exported) -> str:
    """PaddleX 3 reads this file beside ``inference.json`` and ``inference.pdiparams``."""
    ops: list[dict[str, Any]] = []
    for op in exported.transforms:
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
    names: Sequence[str] = exported.class_names or [str(i) for i in range(exported.class_num)]
    page = {
        "Global": {"model_name": _PADDLEX_NAME},
        "PreProcess": {"transform_ops": ops},
        "PostProcess": {"Topk": {"topk": min(5, exported.class_num), "label_list": list(names)}},
    }
    comment = (
        f"# {exported.model}. PaddleX has no Xception; this name of its table selects image classification.\n"
    )
    return comment + yaml.safe_dump(page, sort_keys=False, allow_unicode=True)
