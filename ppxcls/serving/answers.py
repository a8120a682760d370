"""The answers to single images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ppxcls.deploy.predict import Prediction
from ppxcls.deploy.writer import limit_entries
from ppxcls.train.predictions import NOT_FINITE


def first_classes(prediction: Prediction, topk: int) -> Prediction:
    """Returns a prediction with its best ``topk`` classes only."""
    return replace(
        prediction,
        class_ids=prediction.class_ids[:topk],
        scores=prediction.scores[:topk],
        label_names=prediction.label_names[:topk],
    )


def answer_to(prediction: Prediction) -> tuple[int, dict[str, Any]]:
    """Returns status and JSON of one image's prediction."""
    if prediction.error:
        return 500 if prediction.error == NOT_FINITE else 422, {"error": prediction.error}
    best_classes = {
        "class_ids": prediction.class_ids,
        "scores": prediction.scores,
        "label_names": prediction.label_names,
    }
    return 200, best_classes | limit_entries(prediction)
