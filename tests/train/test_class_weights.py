"""Class weights and logit adjustment against scikit-learn, closed forms in numpy, and differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle
import pytest

import ppxcls
from ppxcls.build.data import class_weight_key
from ppxcls.config.checks import ConfigPlace, check_value
from ppxcls.data.class_balance import class_counts, imbalance_note
from ppxcls.system.arrays import Array
from ppxcls.train.class_weights import TrainingClasses, class_weights, describe_weights, logit_offsets
from ppxcls.train.losses import build_loss
from ppxcls.train.mixing import MixupOperator

RNG = np.random.default_rng(0)
COUNTS = np.array([900, 25, 75, 3])
NAMES = ["cat", "dog", "effect", "cafe\u0301"]
WEIGHTS = np.array([0.25, 2.0, 1.5, 0.0])
LABELS = np.array([0, 1, 2, 3, 1, 1, 0])
LOGITS = RNG.normal(0, 2, (len(LABELS), 4))
SOFT_LABELS = RNG.dirichlet(np.ones(4), len(LABELS))


def classes(counts: Any = COUNTS, names: Sequence[str] = NAMES) -> TrainingClasses:
    return TrainingClasses(names, lambda: np.array(counts))


def weights_of(spec: Any, counts: Any = COUNTS, names: Sequence[str] = NAMES) -> Array:
    weights = class_weights(spec, classes(counts, names))
    assert weights is not None
    return weights


# The weights


def test_balanced_is_scikit_learns() -> None:
    class_weight = pytest.importorskip("sklearn.utils.class_weight")
    labels = np.repeat(np.arange(4), COUNTS)
    expected = class_weight.compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(weights_of("balanced"), expected, rtol=1e-12)
    np.testing.assert_allclose(weights_of(1.0), expected, rtol=1e-12)


@pytest.mark.parametrize(("spec", "beta"), [("effective", 0.999), ({"effective": 0.9}, 0.9)])
def test_effective_has_the_ratios_of_the_paper(spec: Any, beta: float) -> None:
    expected = (1 - beta) / (1 - beta**COUNTS)
    weights = weights_of(spec)
    np.testing.assert_allclose(weights / weights[0], expected / expected[0], rtol=1e-9)


@pytest.mark.parametrize("spec", ["balanced", "effective", 0.5, {"effective": 0.99}])
def test_weights_by_counts_keep_the_size_of_the_loss(spec: Any) -> None:
    """A class without images is left out of the mean, and has the weight 1."""
    weights = weights_of(spec, [900, 25, 75, 0])
    assert (weights * [900, 25, 75, 0]).sum() == pytest.approx(1000)
    assert weights[3] == 1.0


@pytest.mark.parametrize(
    ("spec", "limit"), [({"effective": 0.0}, 0.0), ({"effective": 1 - 1e-12}, "balanced"), (0.0, 0.0)]
)
def test_limits(spec: Any, limit: Any) -> None:
    np.testing.assert_allclose(weights_of(spec), weights_of(limit), rtol=1e-6)


def test_an_exponent_is_one_of_the_inverse_frequency() -> None:
    weights = weights_of(0.5)
    np.testing.assert_allclose(weights / weights[0], np.sqrt(900 / COUNTS))


def test_names_and_lists() -> None:
    assert weights_of({"dog": 3.0, "caf\u00e9": 0.5}).tolist() == [1, 3, 1, 0.5], "in any form of Unicode"
    assert weights_of({}).tolist() == [1] * 4
    assert weights_of([1, 2.0, 0, 3]).tolist() == [1, 2, 0, 3]
    ids = [str(i) for i in range(4)]
    spec = build_loss([{"CELoss": {"class_weight": {3: 2, "0": 4}}}], classes=classes(names=ids))
    assert spec.class_weights["CELoss"].tolist() == [4, 1, 1, 2]


def test_a_class_may_have_the_name_of_a_word_or_of_a_method() -> None:
    names = ["effective", "items", "keys", "__iter__"]
    assert weights_of({"effective": 2.0}, names=names).tolist() == [2, 1, 1, 1]
    block = {"CELoss": {"class_weight": {"items": 5.0, "keys": 3, "__iter__": 2}}}
    assert build_loss([block], classes=classes(names=names)).class_weights["CELoss"].tolist() == [1, 5, 3, 2]


def test_counts_are_read_only_if_they_are_needed() -> None:
    def missing() -> Array:
        raise ValueError("there is no list")

    lazy = TrainingClasses(NAMES, missing)
    for arguments in ({}, {"class_weight": {"dog": 2}}, {"class_weight": [1, 2, 3, 4]}):
        build_loss([{"CELoss": arguments}], classes=lazy)
    for arguments in ({"class_weight": "balanced"}, {"logit_adjustment": 1.0}):
        with pytest.raises(ppxcls.ConfigError, match="Loss.0.CELoss: loss CELoss: there is no list"):
            build_loss([{"CELoss": arguments}], classes=lazy)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("balance", "class_weight: expected 'balanced' or 'effective' or a number .* received 'balance'"),
        (1.5, "class_weight: expected .* at most 1 .* received 1.5"),
        (-0.5, "class_weight: expected .* received -0.5"),
        (float("nan"), "class_weight: expected .* received nan"),
        (True, "class_weight: expected .* received True"),
        ([1, -2, 1, 1], r"class_weight.1: expected a number at least 0, received -2"),
        ([1, float("nan"), 1, 1], r"class_weight.1: expected a number at least 0, received nan"),
        ({"dog": float("inf")}, "class_weight.dog: expected a number at least 0, received inf"),
        ({"dog": "heavy"}, "class_weight.dog: expected a number at least 0, received 'heavy'"),
        ({"__class__": 1}, "class_weight: expected another name, received '__class__'"),
        ({(1, 2): 1}, "class_weight: expected a string, received"),
    ],
)
def test_refused_when_the_config_is_loaded(value: Any, message: str) -> None:
    with pytest.raises(ppxcls.ConfigError, match=message):
        ppxcls.LOSSES.blocks([{"CELoss": {"class_weight": value}}], ConfigPlace(("Loss",)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "expected 4 weights, one for each class, received 2"),
        ([0, 0, 0, 0], "expected a weight above 0, received 0 for every class"),
        ({"dgo": 2}, r"no class has the name 'dgo' \(did you mean 'dog'\?\)"),
        ({"cat": 2}, "2 classes have the name 'cat'; write a list of weights"),
        ({"effective": 1}, "expected a beta of effective below 1, received 1"),
    ],
)
def test_refused_when_the_classes_are_known(value: Any, message: str) -> None:
    names = ["cat", "cat", "dog", "emu"] if "cat" in value else ["cat", "cow", "dog", "emu"]
    with pytest.raises(ppxcls.ConfigError, match=f"Loss.0.FocalLoss: .*class_weight: {message}"):
        build_loss([{"FocalLoss": {"class_weight": value}}], classes=classes(names=names))


def test_without_classes_it_says_so() -> None:
    with pytest.raises(ppxcls.ConfigError, match="class_weight needs the classes of a run"):
        build_loss([{"CELoss": {"class_weight": "balanced"}}])
    with pytest.raises(ppxcls.ConfigError, match="logit_adjustment needs the classes of a run"):
        build_loss([{"CELoss": {"logit_adjustment": 1}}])


def test_the_line_of_the_log() -> None:
    assert describe_weights(np.array([2.0, 0.5, 1]), ["a", "b", "c"]) == "class weights from 0.5 (b) to 2 (a)"
    assert len(describe_weights(np.array([1.0, 2]), ["a", "b" * 10_000])) < 150


def test_mappings_are_checked_like_lists() -> None:
    assert check_value({"a": "1/2", 7: 1}, dict[str, float], ConfigPlace()) == {"a": 0.5, "7": 1.0}
    with pytest.raises(ppxcls.ConfigError, match="key: expected a mapping, received 3"):
        check_value(3, dict[str, float], ConfigPlace(("key",)))


# The losses


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def targets_of(labels: Array, epsilon: float = 0.0) -> Array:
    targets = np.eye(4)[labels] if labels.ndim == 1 else labels
    return (1 - epsilon) * targets + epsilon / 4


def cross_entropy(logits: Array, labels: Array, epsilon: float = 0.0, tau: float = 0.0) -> float:
    adjusted = logits + tau * np.log(COUNTS / COUNTS.sum())
    return float(-(WEIGHTS * targets_of(labels, epsilon) * log_softmax(adjusted)).sum(1).mean())


def focal(logits: Array, labels: Array) -> float:
    log_p = log_softmax(logits)
    return float(-(WEIGHTS * targets_of(labels) * (1 - np.exp(log_p)) ** 2 * log_p).sum(1).mean())


def binary(logits: Array, labels: Array, threshold: float | None = None) -> float:
    soft = targets_of(labels)
    targets = soft if threshold is None else (soft > threshold).astype(float)
    terms = -targets * np.log(1 / (1 + np.exp(-logits))) - (1 - targets) * np.log(1 / (1 + np.exp(logits)))
    return float(((soft @ WEIGHTS)[:, None] * terms).mean())


CASES: dict[str, tuple[dict[str, Any], Callable[[Array, Array], float]]] = {
    "CELoss": ({"CELoss": {}}, cross_entropy),
    "smoothed": ({"CELoss": {"epsilon": 0.2}}, lambda x, y: cross_entropy(x, y, 0.2)),
    "adjusted": ({"CELoss": {"logit_adjustment": 1.5}}, lambda x, y: cross_entropy(x, y, 0, 1.5)),
    "FocalLoss": ({"FocalLoss": {}}, focal),
    "BCELoss": ({"BCELoss": {}}, binary),
    "threshold": ({"BCELoss": {"target_threshold": 0.3}}, lambda x, y: binary(x, y, 0.3)),
}


def weighted_loss(case: str) -> Callable[[paddle.Tensor, paddle.Tensor], dict[str, paddle.Tensor]]:
    ((name, arguments),) = CASES[case][0].items()
    spec = {name: {**arguments, "class_weight": WEIGHTS.tolist()}}
    return build_loss([spec], classes=classes())


@pytest.mark.parametrize("labels", [LABELS, SOFT_LABELS], ids=["hard", "soft"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case: str, labels: Array) -> None:
    """The gradient is compared with central differences of the closed form."""
    expected = CASES[case][1]
    logits = paddle.to_tensor(LOGITS.astype(np.float32), stop_gradient=False)
    tensor = paddle.to_tensor(labels if labels.ndim == 1 else labels.astype(np.float32))
    loss = weighted_loss(case)(logits, tensor)["loss"]
    loss.backward()
    assert float(loss) == pytest.approx(expected(LOGITS, labels), rel=1e-5)
    differences = np.empty_like(LOGITS)
    for place in np.ndindex(LOGITS.shape):
        step = np.zeros_like(LOGITS)
        step[place] = 1e-5
        differences[place] = (expected(LOGITS + step, labels) - expected(LOGITS - step, labels)) / 2e-5
    np.testing.assert_allclose(logits.grad.numpy(), differences, atol=2e-6)


def test_equal_weights_change_nothing() -> None:
    logits, labels = paddle.to_tensor(LOGITS.astype(np.float32)), paddle.to_tensor(LABELS)
    plain = float(build_loss([{"CELoss": {}}])(logits, labels)["loss"])
    for spec in ([1, 1, 1, 1], {}, 0.0):
        loss = build_loss([{"CELoss": {"class_weight": spec}}], classes=classes())
        assert float(loss(logits, labels)["loss"]) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_parts_with_other_classes_add_up_to_the_whole_batch(case: str) -> None:
    """As processes and micro-batches do: their means, weighted by their numbers of images."""
    loss, order = weighted_loss(case), np.argsort(LABELS)
    logits, labels = LOGITS[order].astype(np.float32), LABELS[order]

    def total(start: int, stop: int) -> float:
        part = loss(paddle.to_tensor(logits[start:stop]), paddle.to_tensor(labels[start:stop]))
        return (stop - start) * float(part["loss"])

    assert total(0, 2) + total(2, 7) == pytest.approx(total(0, 7), rel=1e-5)


def test_mixup_mixes_the_weighted_losses() -> None:
    """The loss of a mixed image is the mixture of the losses that it would have with each of the labels."""
    labels = paddle.to_tensor(LABELS)
    mixup = MixupOperator(class_num=4, alpha=1.0)
    _, soft = mixup(paddle.zeros([7, 3, 2, 2]), labels, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    share, partner = float(rng.beta(1, 1)), rng.permutation(7)
    received = float(weighted_loss("CELoss")(paddle.to_tensor(LOGITS.astype(np.float32)), soft)["loss"])
    own, other = cross_entropy(LOGITS, LABELS), cross_entropy(LOGITS, LABELS[partner])
    assert received == pytest.approx(share * own + (1 - share) * other, rel=1e-5)


def test_logit_adjustment_of_a_class_without_images_is_finite() -> None:
    np.testing.assert_allclose(logit_offsets(2.0, np.array([8, 0])), 2 * np.log(np.array([8, 1]) / 9))


# The counts


class Labelled(ppxcls.Dataset):
    """A data set of a user that does not check its labels."""

    def read(self, index: int) -> Any:
        raise NotImplementedError


def test_counts_of_a_data_set() -> None:
    assert class_counts(Labelled([2, 0, 2]), 4).tolist() == [1, 0, 2, 0]
    for labels, line in (([0, 4], 2), ([-1, 0], 1)):
        with pytest.raises(ValueError, match=f"Labelled:{line}: the label .* is outside class_num = 4"):
            class_counts(Labelled(labels), 4)


@pytest.mark.parametrize(
    ("counts", "names", "beginning"),
    [
        ([99, 10, 0], [], None),
        ([100, 10, 0], [], "class 0 has 100 training images, 10 times as many as class 1 (10);"),
        ([3, 4000, 50], ["a", "b", "c"], "b has 4,000 training images, 1,333 times as many as a (3);"),
    ],
)
def test_a_note_about_classes_of_very_different_sizes(
    counts: list[int], names: list[str], beginning: str | None
) -> None:
    key = "Loss.Train.1.FocalLoss.class_weight"
    note = imbalance_note(np.array(counts), names, key)
    if beginning is None:
        assert note is None
    else:
        assert note is not None
        assert note.startswith(beginning)
        assert note.endswith(f"; if small classes matter as much as large ones, add -o {key}=balanced")
        assert imbalance_note(np.array(counts), names, None) == note.partition(";")[0]


@pytest.mark.parametrize(
    ("losses", "sampler", "key"),
    [
        ([{"CELoss": {}}], "DistributedBatchSampler", "Loss.Train.0.CELoss.class_weight"),
        ([{"FocalLoss": {}}], "DistributedBatchSampler", "Loss.Train.0.FocalLoss.class_weight"),
        ([{"CELoss": {"class_weight": "balanced"}}], "DistributedBatchSampler", None),
        ([{"CELoss": {"logit_adjustment": 1.0}}], "DistributedBatchSampler", None),
        ([{"CELoss": {}}], "ClassBalancedSampler", None),
    ],
)
def test_the_key_that_a_note_advises(losses: list[Any], sampler: str, key: str | None) -> None:
    loader = {
        "dataset": {"name": "ImageNetDataset", "image_root": ".", "cls_label_path": "list.txt"},
        "sampler": {"name": sampler, "batch_size": 4},
        "loader": {},
    }
    settings = {"Arch": {"name": "Xception41"}, "Loss": {"Train": losses}, "DataLoader": {"Train": loader}}
    assert class_weight_key(ppxcls.load_config(settings)) == key
    assert class_weight_key(ppxcls.load_config({"Arch": {"name": "Xception41"}})) is None
