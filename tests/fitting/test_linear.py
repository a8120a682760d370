"""The linear classifier of ``fit``, against scikit-learn's on the same features."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ppxcls.fitting.folds import grouped_folds, stratified_folds
from ppxcls.fitting.linear import (
    STRENGTHS,
    CrossValidation,
    LinearProblem,
    StrengthChoice,
    accuracy_and_loss,
    chosen_problem,
    cross_validation,
    expected_seconds,
    mean_recall,
)
from ppxcls.system.arrays import Array
from ppxcls.system.logs import set_up_logging

pytest.importorskip("scipy")


def clouds(count: int, width: int, classes: int, distance: float, seed: int = 0) -> tuple[Array, Array]:
    """Returns features of clouds, one for each class, and their labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(100).normal(size=(classes, width)) * distance
    labels = np.arange(count) % classes
    return (3 + centres[labels] + rng.normal(size=(count, width))).astype(np.float32), labels


@pytest.mark.parametrize(("count", "width"), [(200, 12), (40, 300)])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_it_is_scikit_learns(count: int, width: int, strength: float) -> None:
    """With fewer photographs than features it trains in fewer coordinates, which changes nothing."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = clouds(count, width, 4, 0.3)
    problem = LinearProblem(features[None], labels, 4)
    classifier = problem.classifier(problem.train(strength))
    centred = features - features.mean(0)
    centred /= np.sqrt(np.square(centred).mean())
    reference = linear_model.LogisticRegression(C=1000 * strength / count, tol=1e-8, max_iter=10_000)
    expected = reference.fit(centred.astype(np.float64), labels).predict_log_proba(centred)
    logits = classifier.logits(features)
    received = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(np.exp(received), np.exp(expected), atol=5e-3)


def test_folds_have_a_share_of_each_class() -> None:
    labels = np.array([0] * 50 + [1] * 10 + [2] * 3 + [3])
    folds = stratified_folds(labels, 5, seed=0)
    assert np.bincount(folds[labels == 0]).tolist() == [10] * 5
    assert np.bincount(folds[labels == 1]).tolist() == [2] * 5
    assert len(set(folds[labels == 2])) == 3
    assert folds[labels == 3].tolist() == [-1], "the only photograph of a class is never held out"
    np.testing.assert_array_equal(folds, stratified_folds(labels, 5, seed=0))
    assert not np.array_equal(folds, stratified_folds(labels, 5, seed=1))


def test_the_recall_of_a_small_class_counts_as_much() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels = np.array([0] * 199 + [1] * 3 + [3])
    logits = np.zeros((203, 4))
    logits[:, 0] = 1
    logits[200, 1] = 2
    expected = metrics.balanced_accuracy_score(labels, logits.argmax(1))
    assert mean_recall(logits, labels) == pytest.approx(expected)
    assert expected < 0.5 < accuracy_and_loss(logits, labels)[0]


def test_a_group_is_in_one_fold() -> None:
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(40), 5))
    labels = groups % 4  # ten patients of each class
    folds = grouped_folds(labels, groups, 5, seed=0)
    assert all(len(set(folds[groups == group])) == 1 for group in range(40))
    for label in range(4):
        assert np.bincount(folds[labels == label]).tolist() == [10] * 5
    assert not np.array_equal(folds, grouped_folds(labels, groups, 5, seed=1))
    labels[groups == 7] = 4
    folds = grouped_folds(labels, groups, 5, seed=0)
    assert set(folds[groups == 7]) == {-1}, "the only group of a class is never held out"
    assert set(folds[groups != 7]) == {0, 1, 2, 3, 4}


def test_photographs_of_a_patient_are_held_out_together() -> None:
    """Noise that tells the patient, and so the label if the patient is trained on."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    labels = np.repeat(rng.permutation(np.arange(30) % 3), 4)
    features = (rng.normal(size=(30, 200))[groups] + 0.1 * rng.normal(size=(120, 200))).astype(np.float32)
    _, choice = chosen_problem(features[None], labels, class_num=3, seed=0)
    _, grouped_choice = chosen_problem(features[None], labels, class_num=3, seed=0, groups=groups)
    assert choice.accuracy > 0.95
    assert grouped_choice.accuracy < 0.6
    assert grouped_choice.fold_count == 5


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1]),
        ([0, 0, 1, 1], [0, 1, 0, 1]),
        ([0, 0, 0, 1, 1], [0, 1, 2, 2, 2]),
        ([0, 0, 1, 1, 1], [0, 0, 0, 0, 0]),
    ],
)
def test_a_few_groups_are_enough(labels: list[int], groups: list[int]) -> None:
    features, _ = clouds(len(labels), 8, 2, 1.0)
    array = np.array(labels)
    problem, choice = chosen_problem(features[None], array, class_num=2, seed=0, groups=np.array(groups))
    classifier = problem.classifier(problem.train(choice.strength))
    assert accuracy_and_loss(classifier.logits(features), array)[0] == 1.0
    has_two_groups = any(len(set(np.array(groups)[array == label])) > 1 for label in (0, 1))
    assert (choice.fold_count > 0) == has_two_groups


def test_noise_is_given_less_strength_than_clear_classes() -> None:
    noise, labels = clouds(60, 200, 3, 0.0)
    clear, _ = clouds(60, 200, 3, 3.0)
    assert chosen_problem(noise[None], labels, class_num=3, seed=0)[1].strength == STRENGTHS[0]
    _, choice = chosen_problem(clear[None], labels, class_num=3, seed=0)
    assert choice.strength > 10 * STRENGTHS[0]
    assert choice.accuracy == 1.0
    assert choice.fold_count == 5


def test_copies_are_held_out_with_their_photograph() -> None:
    """Noise with copies: a copy in another fold would tell the label."""
    features, _ = clouds(60, 200, 3, 0.0)
    labels = np.random.default_rng(1).integers(0, 3, 60)
    validation = cross_validation(labels, 3, copies=2, width=200, seed=0)
    assert validation
    choice = LinearProblem(np.stack([features, features]), labels, 3).choose(validation)
    assert choice.accuracy < 0.6


def test_copies_that_do_harm_are_left_out() -> None:
    """The copies of one class look like photographs of another one, as mirrored letters may."""
    features, labels = clouds(90, 20, 3, 2.0)
    other_features, _ = clouds(90, 20, 3, 2.0, seed=1)
    wrong = other_features[np.argsort((labels + 1) % 3, kind="stable")][np.argsort(np.argsort(labels))]
    _, choice = chosen_problem(np.stack([features, wrong]), labels, class_num=3, seed=0)
    assert not choice.has_copies
    _, choice = chosen_problem(np.stack([features, other_features]), labels, class_num=3, seed=0)
    assert choice.accuracy == 1.0


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 1], [0, 0, 0, 0, 1, 1, 2]])
def test_a_few_photographs_are_enough(labels: list[int]) -> None:
    features, _ = clouds(len(labels), 8, 3, 1.0)
    problem, choice = chosen_problem(features[None], np.array(labels), class_num=3, seed=0)
    classifier = problem.classifier(problem.train(choice.strength))
    assert accuracy_and_loss(classifier.logits(features), np.array(labels))[0] == 1.0
    assert (choice.fold_count == 0) == (len(set(labels)) == len(labels))
    assert math.isnan(choice.loss) == (choice.fold_count == 0)


def test_equal_features_are_no_error() -> None:
    features = np.full((1, 6, 4), 7.0, np.float32)
    problem, choice = chosen_problem(features, np.array([0, 1] * 3), class_num=2, seed=0)
    classifier = problem.classifier(problem.train(choice.strength))
    assert np.isfinite(classifier.weight).all()
    assert np.isfinite(classifier.logits(features[0])).all()


def test_many_photographs_are_held_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clouds(60, 10, 3, 2.0)
    products = 60 * 10 * (75 + 3) * 60 * len(STRENGTHS)
    monkeypatch.setattr("ppxcls.fitting.linear._MAX_PRODUCTS", 1.5 * products)
    _, choice = chosen_problem(features[None], labels, class_num=3, seed=0)
    assert (choice.fold_count, choice.photograph_count, choice.tried_count) == (1, 60, len(STRENGTHS))
    assert choice.accuracy > 0.9


def trained_products(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Returns the list that each training adds its cost to, in the unit of the limit."""
    products: list[float] = []
    original = LinearProblem.train

    def counted(problem: LinearProblem, strength: float, indices: Array, start: Array | None = None) -> Array:
        copies, _, width = problem._rows.shape
        products.append(copies * len(indices) * width * (75 + problem.class_num) * 60)
        return original(problem, strength, indices, start)

    monkeypatch.setattr(LinearProblem, "train", counted)
    return products


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 3.0])
def test_the_limit_holds_for_many_photographs_and_classes(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fold may be too much: then fewer strengths are tried, on a share of each class."""
    products = trained_products(monkeypatch)
    features, labels = clouds(600, 10, 4, 2.0)
    labels[:3] = 4  # a class of three
    fold_products = 600 * 10 * (75 + 5) * 60 * len(STRENGTHS)
    monkeypatch.setattr("ppxcls.fitting.linear._MAX_PRODUCTS", share * fold_products)
    validation = cross_validation(labels, 5, copies=1, width=10, seed=0)
    assert validation
    choice = LinearProblem(features[None], labels, 5).choose(validation)
    assert sum(products) <= share * fold_products
    assert choice.accuracy > 0.9
    assert choice.tried_count == (7 if share > 1 else 4)
    assert (choice.photograph_count == 600) == (share > 0.5)
    used_labels = labels[validation.folds >= -1]
    assert np.bincount(used_labels).min() >= 2, "each class is trained on and held out"


def test_mirror_images_are_compared_on_the_same_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    validations = []
    original = LinearProblem.choose

    def counted(problem: LinearProblem, validation: CrossValidation) -> StrengthChoice:
        validations.append(validation)
        return original(problem, validation)

    monkeypatch.setattr(LinearProblem, "choose", counted)
    monkeypatch.setattr("ppxcls.fitting.linear._MAX_PRODUCTS", 1.0)
    features, labels = clouds(60, 10, 3, 2.0)
    chosen_problem(np.stack([features, features]), labels, class_num=3, seed=0)
    first, second = validations
    assert (first.fold_count, second.fold_count) == (1, 1)
    np.testing.assert_array_equal(first.folds, second.folds)


def test_more_photographs_and_classes_take_longer() -> None:
    seconds = [expected_seconds(rows, classes) for rows, classes in ((960, 12), (1920, 12), (8000, 1000))]
    assert seconds == sorted(seconds)
    assert seconds[2] > 5 * seconds[1]
    # without the limit of the cross-validation
    assert seconds[2] < seconds[1] * (8000 * 2048 * (75 + 1000)) / (1920 * 1920 * (75 + 12))


def test_a_solver_that_does_not_converge_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging()
    features, labels = clouds(60, 10, 3, 2.0)
    problem = LinearProblem(features[None], labels, 3)
    problem.train(1.0)
    assert "not converged" not in capsys.readouterr().out
    monkeypatch.setattr("ppxcls.fitting.linear._MAX_ITERATIONS", 1)
    problem.train(1.0)
    assert "linear classifier with C = 1: not converged" in capsys.readouterr().out
