"""The report says in words how training and evaluation figures differ."""

from __future__ import annotations

from typing import Any

import ppxcls
from ppxcls.reports.losses import comparison_note, loss_differences

BASE: dict[str, Any] = {
    "Arch": {"name": "Xception41"},
    "Loss": {"Train": [{"CELoss": {"epsilon": 0.1}}], "Eval": [{"CELoss": None}]},
}


def dataset(**keys: Any) -> dict[str, Any]:
    content = {"name": "ImageNetDataset", "image_root": ".", "cls_label_path": "list.txt", **keys}
    return {"dataset": content, "sampler": {"name": "DistributedBatchSampler", "batch_size": 4}}


def test_what_differs_is_named() -> None:
    ops = [{"DecodeImage": None}, {"RandCropImage": {"size": 71}}, {"RandFlipImage": None}]
    train = dataset(transform_ops=ops, batch_transform_ops=[{"MixupOperator": {"alpha": 0.2}}])
    config = ppxcls.load_config(
        {
            **BASE,
            "Arch": {"name": "Xception41", "drop_rate": 0.2},
            "EMA": {"decay": 0.9},
            "DataLoader": {"Train": train},
        }
    )
    text = loss_differences(config)
    for words in (
        "the training loss is CELoss (epsilon 0.1), and the evaluation's is CELoss;",
        "are mixed (MixupOperator)",
        "changed at random (RandCropImage, RandFlipImage)",
        "the training drops activations",
        "averaged weights",
        "can't be compared with each other",
    ):
        assert words in text


def test_what_does_not_differ_is_not_named() -> None:
    ops = [{"DecodeImage": None}, {"ResizeImage": {"size": 71}}]
    losses = {"Train": [{"CELoss": {"weight": 1.0}}], "Eval": None}
    settings = {"Arch": BASE["Arch"], "Loss": losses, "DataLoader": {"Train": dataset(transform_ops=ops)}}
    assert loss_differences(ppxcls.load_config(settings)) == (
        "Training and evaluation figures can't be compared with each other: "
        "the training figures are means over steps during which the weights change."
    )


def test_runs_with_other_losses() -> None:
    first, second = (
        ppxcls.load_config({**BASE, "Loss": {"Train": [{"CELoss": {"epsilon": epsilon}}]}})
        for epsilon in (0.1, 0.2)
    )
    assert comparison_note([first, first]) == ""
    assert "training losses can't be compared" in comparison_note([first, second])
