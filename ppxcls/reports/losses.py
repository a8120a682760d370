"""Says in words how the figures of the training differ from those of the evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from ppxcls.config.registry import Block
from ppxcls.config.sections import Config, to_plain
from ppxcls.system.paths import bounded

_MAX_SHOWN_VALUE = 100  # characters of an argument of a loss
_LAYOUT_TRANSFORMS = (
    *("DecodeImage", "NormalizeImage", "ToCHWImage", "ResizeImage", "CropImage"),
    *("Resize", "CenterCrop", "Pad", "Padv2"),
)


def loss_differences(config: Config) -> str:
    """Returns a sentence about everything that makes training and evaluation figures differ.

    Args:
        config: config of the run.
    """
    train_losses, eval_losses = losses_in_words(config)
    parts = []
    if train_losses != eval_losses:
        parts.append(f"the training loss is {train_losses}, and the evaluation's is {eval_losses}")
    section = config.DataLoader.Train if config.DataLoader else None
    dataset = section.dataset if section else {}
    if mixing := _names(dataset.get("batch_transform_ops") or []):
        parts.append(f"the training images and labels are mixed ({', '.join(mixing)})")
    names = [n for n in _names(dataset.get("transform_ops") or []) if n not in _LAYOUT_TRANSFORMS]
    if names:
        parts.append(f"the training images are changed at random ({', '.join(dict.fromkeys(names))})")
    if config.Arch.get("drop_rate") or config.Arch.get("drop_path_rate"):
        parts.append("the training drops activations")
    if config.EMA and config.EMA.use_ema:
        parts.append("the evaluation uses averaged weights")
    parts.append("the training figures are means over steps during which the weights change")
    return f"Training and evaluation figures can't be compared with each other: {'; '.join(parts)}."


def losses_in_words(config: Config) -> tuple[str, str]:
    """Returns the losses of the training and of the evaluation in words, such as ``CELoss (epsilon 0.1)``."""
    section = config.Loss
    train_blocks = section.Train if section else []
    eval_blocks = (section.Eval if section else None) or []
    return _loss_text(train_blocks), _loss_text(eval_blocks)


def comparison_note(configs: Sequence[Config]) -> str:
    """Returns a sentence if several runs have different losses; empty if their losses can be compared."""
    for number, name in enumerate(("training", "evaluation")):
        texts = [losses_in_words(config)[number] for config in configs]
        if len(set(texts)) > 1:
            return (
                f"The {name} losses can't be compared, because they differ: "
                f"{'; '.join(dict.fromkeys(texts))}. Training and evaluation have a panel each."
            )
    return ""


def _loss_text(blocks: Sequence[Block]) -> str:
    return " + ".join(_one_loss(block) for block in blocks) or "CELoss"


def _one_loss(block: Block) -> str:
    arguments = to_plain(dict(block.arguments))
    if arguments.get("weight") in (None, 1):
        arguments.pop("weight", None)
    # A list of weights may have as many numbers as there are classes.
    pairs = [
        (key, bounded(str(value), _MAX_SHOWN_VALUE)) for key, value in arguments.items() if value is not None
    ]
    text = ", ".join(f"{key} {value}" for key, value in pairs)
    return f"{block.name} ({text})" if text else block.name


def _names(blocks: Sequence[Block]) -> list[str]:
    return [block.name for block in blocks]
