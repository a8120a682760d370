"""A linear classifier of features, with its strength chosen by cross-validation.

The solver is scipy's. scikit-learn's ``LogisticRegression`` calls the same one and has the same result, as a
test shows. It would be one more package to install, for a loss of a few lines.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ppxcls.fitting.folds import grouped_folds, stratified_folds
from ppxcls.fitting.imbalance import ClassCorrection
from ppxcls.system.arrays import Array
from ppxcls.system.logs import logger
from ppxcls.system.matrix_threads import one_matrix_thread

# Inverse strengths of the weight decay that are tried, for features of unit variance. They mean the same for
# any number of photographs: the loss is the mean over the photographs plus |W|² / (2 * value * 1000).
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_MAX_FOLDS = 5
_USUAL_ITERATIONS = 60
_MAX_PRODUCTS = 4e12  # of a cross-validation; a minute of a core, which seldom needs all iterations
_PRODUCTS_OF_FEATURE = 75  # reading and preparing a feature takes as long as this number of products
_SECONDS_PER_PRODUCT = 3e-11  # on a core
_MAX_PRODUCTS_OF_ONE_THREAD = 2e9  # of a loss and its gradient
_USUAL_WIDTH = 2048  # features of a photograph
_FINAL_TRAININGS = 3  # without the photographs that choose, with them, and without mirror images
_MAX_ITERATIONS = 200
_TOLERANCE = 3e-5  # of the gradient


@dataclass(frozen=True)
class LinearClassifier:
    """A linear classifier: its logits are ``features @ weight + bias``.

    Attributes:
        weight: float32 [F, class_num].
        bias: float32 [class_num].
    """

    weight: Array
    bias: Array

    def logits(self, features: Array) -> Array:
        """Returns [N, class_num] for features [N, F]."""
        return features @ self.weight + self.bias


@dataclass(frozen=True)
class StrengthChoice:
    """The result of a cross-validation.

    Attributes:
        strength: chosen inverse strength of the weight decay.
        tried_count: number of strengths that were tried.
        fold_count: number of folds that were held out in turn; 0 if there were too few photographs.
        photograph_count: number of photographs in the folds.
        accuracy: share of correct predictions for the photographs that were held out.
        loss: mean cross-entropy for these photographs.
        has_copies: True if copies of the photographs were trained on too.
        has_worse_copies: True if copies were left out, because they made the loss larger.
    """

    strength: float
    tried_count: int
    fold_count: int
    photograph_count: int
    accuracy: float
    loss: float
    has_copies: bool = False
    has_worse_copies: bool = False

    def __str__(self) -> str:
        if not self.fold_count:
            return f"C = {self.strength:g}, without a choice: too few photographs"
        mirrored = ", with mirror images" if self.has_copies else ""
        if self.has_worse_copies:
            mirrored = ", without mirror images"
        folds = f"{self.fold_count} folds" if self.fold_count > 1 else "one fold"
        score = (
            f"{self.accuracy:.4f} in a cross-validation of {folds} of {self.photograph_count:,} photographs"
        )
        return f"C = {self.strength:g} of {self.tried_count}{mirrored}, {score}"


@dataclass(frozen=True)
class CrossValidation:
    """What a cross-validation holds out.

    Attributes:
        folds: fold of each photograph, int [N]; -1 for those that are always trained on, and -2 for those
            that are left out.
        fold_count: number of folds that are held out in turn. The others are always trained on.
        strengths: inverse strengths to try, in increasing order.
    """

    folds: Array
    fold_count: int
    strengths: Sequence[float]


def cross_validation(
    labels: Array, class_num: int, *, copies: int, width: int, seed: int, groups: Array | None = None
) -> CrossValidation | None:
    """Returns a cross-validation that takes a limited time; None if there are too few photographs.

    With many photographs, not every fold is held out in turn, because each takes long and tells much. With
    very many photographs and classes, fewer strengths are tried, on a share of each class.

    Args:
        labels: class of each photograph, int [N].
        class_num: number of classes.
        copies: images of each photograph.
        width: number of features.
        seed: seed of the folds.
        groups: number of each photograph's group, from 0, int [N]; None for no groups. A group is in one
            fold.
    """
    counts = np.bincount(labels, minlength=class_num)
    group_counts = counts
    if groups is not None:
        group_counts = np.bincount(np.unique(np.stack([labels, groups]), axis=1)[0], minlength=class_num)
    if group_counts.max() < 2:
        return None
    strengths: Sequence[float] = STRENGTHS
    fold_count = int(min(_MAX_FOLDS, group_counts.max()))
    if groups is None:
        folds = stratified_folds(labels, fold_count, seed)
    else:
        folds = grouped_folds(labels, groups, fold_count, seed)
    if (folds < 0).all():
        return None
    rows = copies * len(labels)
    products = _USUAL_ITERATIONS * _products(rows, min(rows, width), class_num)
    used_folds = min(max(int(_MAX_PRODUCTS / (products * len(strengths))), 1), fold_count)
    if products * len(strengths) > _MAX_PRODUCTS:
        strengths = strengths[::2]
    share = _MAX_PRODUCTS / (products * len(strengths))
    if share < 1:
        order = np.random.default_rng([seed, len(labels)]).permutation(len(labels))
        for label in np.flatnonzero(counts):
            indices = order[labels[order] == label]
            folds[indices[max(2, math.ceil(share * len(indices))) :]] = -2
    return CrossValidation(folds, used_folds, strengths)


def expected_seconds(row_count: int, class_num: int) -> float:
    """Returns the time of choosing a strength and of training, in seconds.

    Args:
        row_count: number of images, with copies.
        class_num: number of classes.
    """
    products = _USUAL_ITERATIONS * _products(row_count, min(row_count, _USUAL_WIDTH), class_num)
    chosen_products = min(_MAX_FOLDS * len(STRENGTHS) * products, _MAX_PRODUCTS)
    return _SECONDS_PER_PRODUCT * (chosen_products + _FINAL_TRAININGS * products)


def _products(row_count: int, width: int, class_num: int) -> float:
    """Returns the cost of a loss and its gradient, as a number of products."""
    return float(row_count * width * (_PRODUCTS_OF_FEATURE + class_num))


def accuracy_and_loss(
    logits: Array, labels: Array, correction: ClassCorrection | None = None
) -> tuple[float, float]:
    """Returns the share of correct predictions, and the mean cross-entropy.

    Args:
        logits: [N, class_num].
        labels: class of each photograph, int [N].
        correction: correction of the cross-entropy; None for none.
    """
    values = np.asarray(logits, np.float64)
    accuracy = float((values.argmax(1) == labels).mean())
    if correction is None:
        return accuracy, float(-_log_softmax(values)[np.arange(len(labels)), labels].mean())
    losses = -_log_softmax(values + correction.offsets)[np.arange(len(labels)), labels]
    return accuracy, float((correction.weights[labels] * losses).mean())


def mean_recall(logits: Array, labels: Array) -> float:
    """Returns the mean over the classes of their share of correct predictions, without classes of no label.

    Args:
        logits: [N, class_num].
        labels: class of each photograph, int [N].
    """
    is_correct = logits.argmax(1) == labels
    return float(np.mean([is_correct[labels == label].mean() for label in np.unique(labels)]))


class LinearProblem:
    """Features of photographs and of their copies, prepared for several trainings.

    Args:
        features: float32 [copies, N, F]; the first copy is the photograph itself, and the others are
            changed images of it.
        labels: class of each photograph, int [N].
        class_num: number of classes.
        correction: correction of the loss for unbalanced classes; None for none.
    """

    def __init__(
        self, features: Array, labels: Array, class_num: int, correction: ClassCorrection | None = None
    ) -> None:
        self.labels = labels
        self.class_num = class_num
        self._correction = correction or ClassCorrection(np.ones(class_num), np.zeros(class_num))
        self._copies, self._count, _ = features.shape
        rows = features.reshape(self._copies * self._count, -1).astype(np.float32)
        self._mean = rows.mean(0)
        rows = rows - self._mean
        # One scale for all features: a feature that varies little is not enlarged, which gave a smaller loss.
        self._scale = 1 / max(float(np.sqrt(np.square(rows).mean())), 1e-6)
        rows *= self._scale
        self._basis: Array | None = None
        if len(rows) < rows.shape[1]:
            # Weight decay keeps the weights in the space of the rows, so fewer coordinates are enough.
            with one_matrix_thread():
                self._basis = np.linalg.qr(rows.T.astype(np.float64))[0].astype(np.float32)
            rows = rows @ self._basis
        self._rows = rows.reshape(self._copies, self._count, -1)

    def train(self, strength: float, indices: Array | None = None, start: Array | None = None) -> Array:
        """Trains on some photographs with all their copies.

        Args:
            strength: inverse strength of the weight decay.
            indices: indices of the photographs; None for all.
            start: result of another training, to start from; None for zeros.

        Returns:
            Weights and biases for the prepared features, float64 [coordinates + 1, class_num].
        """
        from scipy.optimize import minimize

        indices = np.arange(self._count) if indices is None else indices
        rows = self._rows[:, indices].reshape(-1, self._rows.shape[2])
        labels = np.tile(self.labels[indices], self._copies)
        shape = (rows.shape[1] + 1, self.class_num)
        if start is None:
            start = np.zeros(shape)
        objective = functools.partial(
            _loss_and_gradient,
            rows=rows,
            labels=labels,
            correction=self._correction,
            decay=1 / (1000 * strength),
        )
        products = _products(len(rows), rows.shape[1], self.class_num)
        with one_matrix_thread(is_needed=products < _MAX_PRODUCTS_OF_ONE_THREAD):
            result = minimize(
                objective,
                start.ravel(),
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": _MAX_ITERATIONS, "gtol": _TOLERANCE},
            )
        if not result.success:
            logger.warning(f"linear classifier with C = {strength:g}: not converged: {result.message}")
        solution: Array = result.x.reshape(shape)
        return solution

    def logits(self, solution: Array, indices: Array) -> Array:
        """Returns the logits of photographs, without their copies, float32 [len(indices), class_num]."""
        return (self._rows[0, indices] @ solution[:-1] + solution[-1]).astype(np.float32)

    def classifier(self, solution: Array) -> LinearClassifier:
        """Returns the classifier of features as they were given, without any preparation."""
        weight = solution[:-1] if self._basis is None else self._basis @ solution[:-1]
        weight = weight * self._scale
        bias = solution[-1] - self._mean @ weight
        return LinearClassifier(weight.astype(np.float32), bias.astype(np.float32))

    def choose(self, validation: CrossValidation) -> StrengthChoice:
        """Chooses the strength with the smallest loss in a cross-validation."""
        strengths, folds = validation.strengths, validation.folds
        logits = np.zeros((len(strengths), self._count, self.class_num), np.float32)
        for fold in range(validation.fold_count):
            fold_indices = np.flatnonzero(folds == fold)
            training_indices = np.flatnonzero((folds != fold) & (folds >= -1))
            solution = None
            for i, strength in enumerate(strengths):
                solution = self.train(strength, training_indices, solution)
                logits[i, fold_indices] = self.logits(solution, fold_indices)
        indices = np.flatnonzero((folds >= 0) & (folds < validation.fold_count))
        scores = [
            accuracy_and_loss(values[indices], self.labels[indices], self._correction) for values in logits
        ]
        best = int(np.argmin([loss for _, loss in scores]))
        accuracy, loss = scores[best]
        return StrengthChoice(
            strength=strengths[best],
            tried_count=len(strengths),
            fold_count=validation.fold_count,
            photograph_count=int((folds >= -1).sum()),
            accuracy=accuracy,
            loss=loss,
        )


def chosen_problem(
    features: Array,
    labels: Array,
    *,
    class_num: int,
    seed: int,
    correction: ClassCorrection | None = None,
    groups: Array | None = None,
) -> tuple[LinearProblem, StrengthChoice]:
    """Returns the problem and the strength with the smallest loss in a cross-validation.

    Copies of the photographs are left out if they make the loss larger.

    Args:
        features: float32 [copies, N, F].
        labels: class of each photograph, int [N].
        class_num: number of classes.
        seed: seed of the folds.
        correction: correction of the loss for unbalanced classes; None for none.
        groups: number of each photograph's group, from 0, int [N]; None for no groups.
    """
    problem = LinearProblem(features, labels, class_num, correction)
    copies, _, width = features.shape
    validation = cross_validation(labels, class_num, copies=copies, width=width, seed=seed, groups=groups)
    if validation is None:
        middle = STRENGTHS[len(STRENGTHS) // 2]
        return problem, StrengthChoice(middle, len(STRENGTHS), 0, 0, math.nan, math.nan, copies > 1)
    choice = problem.choose(validation)
    if copies > 1:
        plain_problem = LinearProblem(features[:1], labels, class_num, correction)
        plain_choice = plain_problem.choose(replace(validation, strengths=[choice.strength]))
        if plain_choice.loss < choice.loss:
            choice = replace(plain_choice, tried_count=choice.tried_count, has_worse_copies=True)
            return plain_problem, choice
    return problem, replace(choice, has_copies=copies > 1)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def _loss_and_gradient(
    values: Array, rows: Array, *, labels: Array, correction: ClassCorrection, decay: float
) -> tuple[float, Array]:
    """Returns the mean cross-entropy plus half the decay times the squared weights, and its gradient."""
    solution = values.reshape(-1, len(correction.weights))
    weight = solution[:-1].astype(np.float32)
    logits = (rows @ weight).astype(np.float64)
    logits += solution[-1] + correction.offsets
    logits -= logits.max(1, keepdims=True)
    errors = np.exp(logits)
    sums = errors.sum(1)
    indices = np.arange(len(labels))
    row_weights = correction.weights[labels] / len(labels)
    loss = (row_weights * (np.log(sums) - logits[indices, labels])).sum()
    loss += 0.5 * decay * np.square(solution[:-1]).sum()
    errors /= sums[:, np.newaxis]
    errors[indices, labels] -= 1
    errors *= row_weights[:, np.newaxis]
    gradient: Any = np.empty_like(solution)
    gradient[:-1] = rows.T @ errors.astype(np.float32)
    gradient[:-1] += decay * solution[:-1]
    gradient[-1] = errors.sum(0)
    return float(loss), gradient.ravel()
