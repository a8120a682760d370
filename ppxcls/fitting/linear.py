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

from ppxcls.system.arrays import Array
from ppxcls.system.logs import logger

# Inverse strengths of the weight decay that are tried, for features of unit variance. They mean the same for
# any number of photographs: the loss is the mean over the photographs plus |W|² / (2 * value * 1000).
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_MAX_FOLDS = 5
_USUAL_ITERATIONS = 60
_MAX_MULTIPLICATIONS = 2e12  # of a cross-validation; about half a minute of two cores
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
        accuracy: share of correct predictions for the photographs that were held out.
        loss: mean cross-entropy for these photographs.
        has_copies: True if copies of the photographs were trained on too.
    """

    strength: float
    tried_count: int
    fold_count: int
    accuracy: float
    loss: float
    has_copies: bool = False

    def __str__(self) -> str:
        if not self.fold_count:
            return f"C = {self.strength:g}, without a choice: too few photographs"
        mirrored = ", with mirror images" if self.has_copies else ""
        folds = f"{self.fold_count} folds" if self.fold_count > 1 else "one fold"
        score = f"{self.accuracy:.4f} in a cross-validation of {folds}"
        return f"C = {self.strength:g} of {self.tried_count}{mirrored}, {score}"


def stratified_folds(labels: Array, fold_count: int, seed: int) -> Array:
    """Returns the fold of each photograph, int [N]; each fold has about the same share of each class.

    A photograph that is the only one of its class is in no fold: -1.
    """
    rng = np.random.default_rng([seed, fold_count])
    folds = np.full(len(labels), -1)
    offset = 0
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        if len(indices) > 1:
            folds[indices] = (offset + np.arange(len(indices))) % fold_count
            offset += len(indices)  # so that small classes are spread over the folds
    return folds


def accuracy_and_loss(logits: Array, labels: Array) -> tuple[float, float]:
    """Returns the share of correct predictions, and the mean cross-entropy."""
    log_probabilities = _log_softmax(np.asarray(logits, np.float64))
    rows = np.arange(len(labels))
    accuracy = float((log_probabilities.argmax(1) == labels).mean())
    return accuracy, float(-log_probabilities[rows, labels].mean())


class LinearProblem:
    """Features of photographs and of their copies, prepared for several trainings.

    Args:
        features: float32 [copies, N, F]; the first copy is the photograph itself, and the others are
            changed images of it.
        labels: class of each photograph, int [N].
        class_num: number of classes.
    """

    def __init__(self, features: Array, labels: Array, class_num: int) -> None:
        self.labels = labels
        self.class_num = class_num
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
            class_num=self.class_num,
            decay=1 / (1000 * strength),
        )
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

    def choose(self, seed: int, strengths: Sequence[float] = STRENGTHS) -> StrengthChoice:
        """Chooses the strength with the smallest loss in a cross-validation.

        With many photographs, not every fold is held out in turn, because each takes long and tells much.

        Args:
            seed: seed of the folds.
            strengths: inverse strengths to try, in increasing order.
        """
        counts = np.bincount(self.labels, minlength=self.class_num)
        if counts.max() < 2:
            return StrengthChoice(strengths[len(strengths) // 2], len(strengths), 0, math.nan, math.nan)
        fold_count = int(min(_MAX_FOLDS, counts.max()))
        folds = stratified_folds(self.labels, fold_count, seed)
        multiplications = 4 * self._rows.size * self.class_num * len(strengths) * _USUAL_ITERATIONS
        used_folds = min(max(int(_MAX_MULTIPLICATIONS / multiplications), 1), fold_count)
        logits = np.zeros((len(strengths), self._count, self.class_num), np.float32)
        for fold in range(used_folds):
            val_indices = np.flatnonzero(folds == fold)
            training_indices = np.flatnonzero(folds != fold)
            solution = None
            for i, strength in enumerate(strengths):
                solution = self.train(strength, training_indices, solution)
                logits[i, val_indices] = self.logits(solution, val_indices)
        used_indices = np.flatnonzero((folds >= 0) & (folds < used_folds))
        scores = [accuracy_and_loss(values[used_indices], self.labels[used_indices]) for values in logits]
        best = int(np.argmin([loss for _, loss in scores]))
        return StrengthChoice(strengths[best], len(strengths), used_folds, *scores[best])


def chosen_problem(
    features: Array, labels: Array, class_num: int, seed: int
) -> tuple[LinearProblem, StrengthChoice]:
    """Returns the problem and the strength with the smallest loss in a cross-validation.

    Copies of the photographs are left out if they make the loss larger.

    Args:
        features: float32 [copies, N, F].
        labels: class of each photograph, int [N].
        class_num: number of classes.
        seed: seed of the folds.
    """
    problem = LinearProblem(features, labels, class_num)
    choice = problem.choose(seed)
    if len(features) > 1 and choice.fold_count:
        plain_problem = LinearProblem(features[:1], labels, class_num)
        plain_choice = plain_problem.choose(seed, [choice.strength])
        if plain_choice.loss < choice.loss:
            return plain_problem, replace(plain_choice, tried_count=choice.tried_count, has_copies=False)
    return problem, replace(choice, has_copies=len(features) > 1)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def _loss_and_gradient(
    values: Array, rows: Array, *, labels: Array, class_num: int, decay: float
) -> tuple[float, Array]:
    """Returns the mean cross-entropy plus half the decay times the squared weights, and its gradient."""
    solution = values.reshape(-1, class_num)
    weight = solution[:-1].astype(np.float32)
    log_probabilities = _log_softmax((rows @ weight).astype(np.float64) + solution[-1])
    indices = np.arange(len(labels))
    loss = -log_probabilities[indices, labels].mean() + 0.5 * decay * np.square(solution[:-1]).sum()
    errors = np.exp(log_probabilities)
    errors[indices, labels] -= 1
    errors /= len(labels)
    gradient: Any = np.empty_like(solution)
    gradient[:-1] = rows.T @ errors.astype(np.float32)
    gradient[:-1] += decay * solution[:-1]
    gradient[-1] = errors.sum(0)
    return float(loss), gradient.ravel()
