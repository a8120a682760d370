"""Checks the metrics of a config, and the figure that chooses ``best_model``, when the config is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from ppxcls.config.checks import ConfigError, unknown_word_message
from ppxcls.config.registry import Block, registry
from ppxcls.config.sections import Config

# Other values in the results, in a line of metrics.jsonl, and in eval.json and test.json.
_RESERVED_NAMES = (
    *("num_samples", "num_groups", "bad_samples", "kind", "epoch", "step", "iter", "samples", "lr"),
    *("weights", "about", "data", "list", "top1_interval", "uses", "checkpoint", "tta", "views"),
)
# Metrics without the section Metric, and losses of evaluations without Loss.Eval.
DEFAULT_METRICS: Sequence[Mapping[str, Any]] = [{"TopkAcc": {"topk": [1, 5]}}]
DEFAULT_LOSSES: Sequence[Mapping[str, Any]] = [{"CELoss": {}}]
WHOLE_LOSS = "loss"
GROUP_PREFIX = "group_"  # of the names of figures of groups of images


def class_num_of(config: Config) -> int | None:
    """Returns the number of classes of the config's network: from ``Arch``, or the network's default.

    None if the network has no parameter ``class_num``.
    """
    model = registry("model").get(config.Arch.name, config.where("Arch"))
    parameter = inspect.signature(model).parameters.get("class_num")
    return None if parameter is None else int(config.Arch.get("class_num", parameter.default))


def numbered_name(name: str, earlier_names: Container[str], index: int) -> str:
    """Returns the name of a term of a loss, with its index in the list if an earlier term has the name."""
    return name if name not in earlier_names else f"{name}_{index}"


def _loss_names(config: Config) -> list[str]:
    names: list[str] = []
    for index, block in enumerate((config.Loss.Eval if config.Loss else None) or DEFAULT_LOSSES):
        names.append(numbered_name(next(iter(block)), names, index))
    return [*names, WHOLE_LOSS]


def refuse_in_training(block: Block, names: Sequence[str]) -> None:
    """Raises ConfigError if a training metric has no measure that is a mean over samples.

    Args:
        block: block of the metric.
        names: names of its measures that are means over samples.
    """
    if not names:
        raise block.where.error(
            f"{block.name} is an evaluation metric: expected it under Metric.Eval, because training metrics "
            "are means over batches, such as TopkAcc"
        )


def _refuse_logit_adjustment(config: Config) -> None:
    """Raises ConfigError if a loss of evaluations adds offsets to the logits, which only training needs."""
    for block in (config.Loss.Eval if config.Loss else None) or []:
        if factor := block.arguments.get("logit_adjustment"):
            raise (block.where / "logit_adjustment").error(
                f"expected 0 under Loss.Eval, received {factor:g}: only a training adds "
                "to the logits; write it under Loss.Train"
            )


def check_figures(config: Config) -> None:
    """Builds the metrics of a config, and checks ``Global.best_metric`` against the figures of evaluations.

    Names of classes are not checked, because they are not known yet.

    Raises:
        ConfigError: a loss of evaluations is for training only, a metric does not fit the number of classes,
            two figures have the same name, a training metric is for evaluation only, or no figure has the
            name ``Global.best_metric``.
    """
    _refuse_logit_adjustment(config)
    class_num = class_num_of(config)
    if class_num is None or class_num < 1:  # such as a network without its classifier
        return
    training_blocks = (config.Metric.Train if config.Metric else None) or []
    for block in training_blocks:
        metric = registry("metric").build(block, class_num=class_num, class_names=None)
        refuse_in_training(block, metric.names)
    figures = _evaluation_figures(config, class_num)
    best_metric = config.Global.best_metric
    image_metric = (best_metric or "").removeprefix(GROUP_PREFIX)
    is_of_groups = image_metric != best_metric and image_metric not in _loss_names(config)
    if best_metric is not None and (image_metric if is_of_groups else best_metric) not in figures:
        message = unknown_word_message(best_metric, figures, "figure of the evaluation")
        raise config.where("Global.best_metric").error(message)


def _evaluation_metrics(config: Config, class_num: int) -> tuple[list[Block], list[Any]]:
    """Returns the blocks of the metrics of an evaluation, and the metrics."""
    if config.Metric:
        blocks = config.Metric.Eval or []
    else:
        blocks = registry("metric").blocks(DEFAULT_METRICS, config.where("Metric.Eval"))
    return blocks, [
        registry("metric").build(block, class_num=class_num, class_names=None) for block in blocks
    ]


def _evaluation_figures(config: Config, class_num: int) -> list[str]:
    """Returns the names of the figures of an evaluation: those of its metrics, then its losses."""
    losses = _loss_names(config)
    blocks, metrics = _evaluation_metrics(config, class_num)
    # Of a mean over classes, the results also have the number of classes.
    class_figures = {f"{name}_classes": metric for metric in metrics for name in metric.figures}
    figures: list[str] = []
    for block, metric in zip(blocks, metrics, strict=True):
        for name in (*metric.names, *metric.figures):
            is_of_other = class_figures.get(name, metric) is not metric
            is_of_other |= name in [f"{GROUP_PREFIX}{figure}" for figure in figures]
            if is_of_other or name in (*figures, *losses, *_RESERVED_NAMES):
                raise _duplicate(block, name)
            figures.append(name)
    return [*figures, *losses]


def deciding_figure(config: Config) -> tuple[str, bool]:
    """Returns the figure that chooses ``best_model``, and True if a larger one is better."""
    class_num = class_num_of(config) or 1
    figure = config.Global.best_metric or _evaluation_figures(config, class_num)[0]
    metrics = _evaluation_metrics(config, class_num)[1]
    return figure, is_larger_better(figure, losses=_loss_names(config), metrics=metrics)


def is_larger_better(figure: str, *, losses: Container[str], metrics: Iterable[Any]) -> bool:
    """True if a larger value of a figure is better, as of all but losses and error rates.

    Args:
        figure: name of the figure, which may be one of groups of images.
        losses: names of the losses of the evaluation.
        metrics: metrics of the evaluation.
    """
    smaller_is_better = {name for metric in metrics for name in metric.smaller_is_better}
    return (
        figure not in losses
        and figure not in smaller_is_better
        and figure.removeprefix(GROUP_PREFIX) not in smaller_is_better
    )


def _duplicate(block: Block, name: str) -> ConfigError:
    advice = ""
    if "figure" in registry(block.kind).schema(block.name):
        advice = f"; give it another name: {block.name}: {{figure: {name}_2}}"
    return block.where.error(f"the results have a figure {name!r} already{advice}")
