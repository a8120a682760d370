"""Measures how well unknown images are told from known ones, and what stated shares are worth.

    python scripts/benchmarks/unknown_images.py digits
    python scripts/benchmarks/unknown_images.py flowers PHOTOGRAPHS TRUNK

``digits`` trains a small network on scikit-learn's digits 0 to 7; 8 and 9 are unknown. ``flowers`` trains a
linear classifier of the features of a published trunk, and takes three kinds of flowers as unknown, each kind
once. PHOTOGRAPHS is a folder with train/KIND and test/KIND. Each is repeated with other seeds, and of the
known images that were not trained on, a random half calibrates and the other half is judged.

Prints means and standard deviations over the repetitions: the area under the ROC curve of known against
unknown images (AUROC) for four scores, both shares of images that are turned away, the coverage of the sets
of classes, and the calibration error before and after the temperature.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts/comparison")]

import ppxcls
from ppxcls.calibration.coverage import class_sets, score_limit
from ppxcls.calibration.reliability import reliability
from ppxcls.calibration.temperature import calibrated, calibration_of
from ppxcls.calibration.unknown import energies, energy_limit

Array = np.ndarray
SHARE, COVERAGE = 0.05, 0.95
_NEIGHBOURS = 10
_FLOWER_PIXELS = 150
_KINDS_AT_ONCE = 3  # unknown kinds of flowers in one repetition
_DIGIT_STEPS = 400


@dataclass(frozen=True)
class Outputs:
    """Features [N, F] and logits [N, class_num] of images, and their labels [N]; -1 for an unknown image."""

    features: Array
    logits: Array
    labels: Array

    def part(self, indices: Array) -> Outputs:
        """Returns these images only."""
        return Outputs(self.features[indices], self.logits[indices], self.labels[indices])


@dataclass(frozen=True)
class Case:
    """The images of one repetition: those of training, the held-out known ones, and the unknown ones."""

    training: Outputs
    known_images: Outputs
    unknown_images: Outputs


def neighbour_distance(training: Array, features: Array) -> Array:
    """Returns the distance to the k-th nearest training image, of normalised features (arXiv:2204.06507)."""
    units = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (training, features)]
    return -np.sort(units[1] @ units[0].T, axis=1)[:, -_NEIGHBOURS]


def mahalanobis_distance(training: Outputs, features: Array) -> Array:
    """Returns the smallest distance to the mean of a class, by the covariance in all (arXiv:1807.03888)."""
    labels = np.unique(training.labels)
    means = np.stack([training.features[training.labels == label].mean(0) for label in labels])
    rest = training.features - means[np.searchsorted(labels, training.labels)]
    covariance = rest.T @ rest / len(rest)
    # Features are often more than images, so the covariance is drawn towards its diagonal.
    covariance += 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    inverse = np.linalg.inv(covariance)
    differences = features[:, np.newaxis] - means
    return np.einsum("ncf,fg,ncg->nc", differences, inverse, differences, optimize=True).min(1)


def auroc(known_values: Array, unknown_values: Array) -> float:
    """Returns the probability that an unknown image has the larger value; a tie counts half."""
    from sklearn.metrics import roc_auc_score

    labels = np.repeat([0, 1], [len(known_values), len(unknown_values)])
    return float(roc_auc_score(labels, np.concatenate([known_values, unknown_values])))


def calibration_error(scores: Array, labels: Array) -> float:
    """Returns the calibration error of the best classes of scores [N, class_num]."""
    return reliability(scores.max(1), scores.argmax(1) == labels).error


def figures(case: Case, seed: int) -> dict[str, float]:
    """Returns the figures of one repetition."""
    order = np.random.default_rng(seed).permutation(len(case.known_images.labels))
    calibration_images, judged = (case.known_images.part(part) for part in np.array_split(order, 2))
    record = calibration_of(calibration_images.logits, calibration_images.labels, "the benchmark")
    scores_of = {
        "energy": lambda images: energies(images.logits, record.temperature),
        "max softmax": lambda images: -calibrated(images.logits, record.temperature).max(1),
        "nearest neighbours": lambda images: neighbour_distance(case.training.features, images.features),
        "Mahalanobis": lambda images: mahalanobis_distance(case.training, images.features),
    }
    result = {}
    for name, score in scores_of.items():
        result[f"AUROC, {name}"] = auroc(score(judged), score(case.unknown_images))
        values = np.sort(score(calibration_images))
        limit = values[min(int(np.ceil((len(values) + 1) * (1 - SHARE))), len(values)) - 1]
        result[f"unknown images turned away, {name}"] = float((score(case.unknown_images) > limit).mean())
    limit = energy_limit(record, SHARE)
    result["known images turned away, energy"] = float((scores_of["energy"](judged) > limit).mean())
    scores = calibrated(judged.logits, record.temperature)
    sets = class_sets(scores, score_limit(record, COVERAGE))
    result["coverage"] = float(sets[np.arange(len(scores)), judged.labels].mean())
    result["classes in a set"] = float(sets.sum(1).mean())
    result["top-1"] = float((scores.argmax(1) == judged.labels).mean())
    result["temperature"] = record.temperature
    result["calibration error before"] = calibration_error(calibrated(judged.logits, 1.0), judged.labels)
    result["calibration error after"] = calibration_error(scores, judged.labels)
    return result | {"judged images": len(judged.labels), "calibration images": record.images}


def digit_cases(count: int) -> Iterator[Case]:
    """Yields repetitions with a small network that is trained on 30 digits of each of eight classes."""
    import paddle
    from paddle import nn
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[:, np.newaxis] / 8 - 1).astype(np.float32)
    for seed in range(count):
        paddle.seed(seed)
        trunk = nn.Sequential(
            *(nn.Conv2D(1, 32, 3, padding=1), nn.BatchNorm2D(32), nn.ReLU(), nn.MaxPool2D(2)),
            *(nn.Conv2D(32, 64, 3, padding=1), nn.BatchNorm2D(64), nn.ReLU()),
            *(nn.AdaptiveAvgPool2D(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU()),
        )
        classifier = nn.Linear(64, 8)
        optimizer = paddle.optimizer.Adam(0.002, parameters=[*trunk.parameters(), *classifier.parameters()])
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(images))
        known_ids = order[digits.target[order] < 8]
        training = np.concatenate([known_ids[digits.target[known_ids] == label][:30] for label in range(8)])
        for _ in range(_DIGIT_STEPS):
            batch = rng.choice(training, 64)
            loss = nn.functional.cross_entropy(
                classifier(trunk(paddle.to_tensor(images[batch]))), paddle.to_tensor(digits.target[batch])
            )
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
        trunk.eval()

        def outputs(indices: Array, trunk: nn.Layer = trunk, classifier: nn.Layer = classifier) -> Outputs:
            with paddle.no_grad():
                features = trunk(paddle.to_tensor(images[indices]))
                logits = classifier(features).numpy()
            labels = np.where(digits.target[indices] < 8, digits.target[indices], -1)
            return Outputs(features.numpy(), logits, labels)

        is_unknown = digits.target >= 8
        held_out = np.setdiff1d(known_ids, training)
        yield Case(outputs(training), outputs(held_out), outputs(np.flatnonzero(is_unknown)))


def flower_features(photographs: Path, trunk: Path) -> tuple[Array, Array]:
    """Returns the features [N, F] of all photographs, and their kinds [N]."""
    import paddle
    from features import in_batches  # scripts/comparison/features.py
    from trunk import trunk_network  # scripts/comparison/trunk.py

    network = trunk_network(trunk)
    normalize = {"scale": "1.0/255.0", "mean": [0.5] * 3, "std": [0.5] * 3, "order": ""}
    transform = ppxcls.build_transforms(
        [
            {"DecodeImage": {}},
            {"ResizeImage": {"size": _FLOWER_PIXELS}},
            {"NormalizeImage": normalize},
            {"ToCHWImage": {}},
        ]
    )
    files = sorted(file for file in photographs.glob("*/*/*") if file.is_file())
    images = np.stack([transform(file.read_bytes()) for file in files])
    with paddle.no_grad():
        features = in_batches(lambda batch: network(paddle.to_tensor(batch)).numpy(), images)
    return features, np.unique([file.parent.name for file in files], return_inverse=True)[1]


def flower_cases(photographs: Path, trunk: Path, count: int) -> Iterator[Case]:
    """Yields repetitions with a linear classifier of nine kinds, of 30 photographs of each."""
    from ppxcls.fitting.linear import LinearProblem

    features, kinds = flower_features(photographs, trunk)
    kind_count = int(kinds.max()) + 1
    for seed in range(count):
        rng = np.random.default_rng(seed)
        kind_order = np.random.default_rng(seed // 4).permutation(kind_count)  # each kind once in four turns
        turn = seed % (kind_count // _KINDS_AT_ONCE)
        unknown_kinds = kind_order[turn * _KINDS_AT_ONCE : (turn + 1) * _KINDS_AT_ONCE]
        known_kinds = np.setdiff1d(np.arange(kind_count), unknown_kinds)
        order = rng.permutation(len(kinds))
        known_ids = order[np.isin(kinds[order], known_kinds)]
        training = np.concatenate([known_ids[kinds[known_ids] == kind][:30] for kind in known_kinds])
        labels = np.searchsorted(known_kinds, kinds[training])
        problem = LinearProblem(features[np.newaxis, training], labels, len(known_kinds))
        classifier = problem.classifier(problem.train(0.1))

        def outputs(
            indices: Array, classifier: object = classifier, known_kinds: Array = known_kinds
        ) -> Outputs:
            labels = np.searchsorted(known_kinds, kinds[indices])
            return Outputs(features[indices], classifier.logits(features[indices]), labels)  # type: ignore[attr-defined]

        is_unknown = np.isin(kinds, unknown_kinds)
        held_out = np.setdiff1d(known_ids, training)
        yield Case(outputs(training), outputs(held_out), outputs(np.flatnonzero(is_unknown)))


def print_coverage(rows: list[dict[str, float]]) -> None:
    """Prints how many coverages are inside their 95 % interval.

    The binomial one is for exact limits. With the limits of a few calibration images, the number is
    beta-binomial (Vovk 2012, arXiv:1209.2673).
    """
    from scipy.stats import betabinom, binom

    judged, calibrating = int(rows[0]["judged images"]), int(rows[0]["calibration images"])
    rank = int(np.ceil((calibrating + 1) * COVERAGE))
    for name, law in (
        ("binomial", binom(judged, COVERAGE)),
        ("beta-binomial", betabinom(judged, rank, calibrating + 1 - rank)),
    ):
        low, high = (float(count / judged) for count in law.interval(0.95))
        inside_count = sum(low <= row["coverage"] <= high for row in rows)
        print(f"coverage inside {low:.3f} to {high:.3f}, {name}: {inside_count} of {len(rows)} repetitions")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=["digits", "flowers"])
    parser.add_argument("photographs", type=Path, nargs="?")
    parser.add_argument("trunk", type=Path, nargs="?")
    parser.add_argument("--repetitions", type=int, default=12)
    arguments = parser.parse_args()
    if arguments.data == "digits":
        cases = digit_cases(arguments.repetitions)
    else:
        if not (arguments.photographs and arguments.trunk):
            parser.error("flowers: expected PHOTOGRAPHS and TRUNK")
        cases = flower_cases(arguments.photographs, arguments.trunk, arguments.repetitions)
    rows = [figures(case, seed) for seed, case in enumerate(cases)]
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        print(f"{name:42} {values.mean():8.4f} ± {values.std():.4f}")
    print_coverage(rows)


if __name__ == "__main__":
    main()
