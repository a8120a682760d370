"""Chooses the settings of ``fit`` with weights: size of the features, and stages that the time allows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ppxcls.build.class_order import config_of_weights
from ppxcls.config.checks import ConfigPlace
from ppxcls.data.device import ModelInput
from ppxcls.fitting.configs import config_of
from ppxcls.fitting.early_layers import early_layer_patterns
from ppxcls.fitting.feature_loader import feature_loader
from ppxcls.fitting.features import FeatureComputer, network_with_weights
from ppxcls.fitting.plan import BATCH_SIZE, Counts, Plan, make_plan, measured_speeds
from ppxcls.fitting.request import Request
from ppxcls.fitting.settings import Settings
from ppxcls.fitting.yaml_files import LISTS, TRAIN_YAML, train_yaml
from ppxcls.models.common_keys import MODELS, freeze, set_norm_momentum
from ppxcls.models.parts import split_network
from ppxcls.models.preprocessing import run_preprocessing
from ppxcls.ops import onednn
from ppxcls.ops.convolution import to_bfloat16
from ppxcls.system.arrays import Array
from ppxcls.system.atomic_files import write_text

_DEFAULT_SIZE_PIXELS = 299
_LEARNING_RATE = 0.001  # of all layers, for AdamW and batches of 32
_NORM_MOMENTUM = 0.9  # so that batch norms follow the weights within 50 steps; Keras's 0.99 needs 500


@dataclass(frozen=True)
class Preparation:
    """How the publisher of weights prepared images.

    Attributes:
        size: side of the images, pixels.
        crop_share: side of the image divided by the shorter side of the resized photograph; 0 for no crop.
        interpolation: interpolation of the resizing; empty for the default.
        source: publisher, in words.
    """

    size: int
    crop_share: float
    interpolation: str
    source: str


def preparation_for(network: str, weights: str) -> Preparation:
    """Returns the preparation by the run that trained the weights, or by the publisher of the network."""
    config = config_of_weights(weights)
    preprocessing = run_preprocessing(config) if config else None
    if preprocessing and preprocessing.is_exhaustive and isinstance(preprocessing.images.size, int):
        images = preprocessing.images
        share = preprocessing.images.size / images.short if images.short else 0.0
        return Preparation(
            preprocessing.images.size, min(share, 1.0), images.interpolation or "", "their run"
        )
    facts = MODELS.fact(network, "published")
    if facts is None:
        return Preparation(_DEFAULT_SIZE_PIXELS, 0.9, "", "the default")
    return Preparation(facts.input_size, facts.crop_share or 0.0, facts.interpolation, facts.source)


def with_stages(
    request: Request, settings: Settings, *, folder: Path, counts: Counts, seconds: float
) -> tuple[Settings, FeatureComputer] | None:
    """Returns the settings for the stages with weights, and the compiled network.

    It is None if the network has no parts.

    Args:
        request: arguments of ``fit``.
        settings: provisional settings.
        folder: folder with the lists and the provisional ``train.yaml``, which is written again.
        counts: numbers of photographs.
        seconds: time that is left for the whole command.

    Raises:
        ConfigError, CheckpointError, DataError: an override, the weights or a photograph can't be used.
    """
    assert settings.weights
    file = folder / TRAIN_YAML
    network = network_with_weights(config_of(request, file), settings.weights)
    parts = split_network(network)
    if parts is None or parts.classifier.bias is None:
        return None
    preparation = preparation_for(settings.network, settings.weights)
    settings = replace(
        settings,
        size=preparation.size,
        feature_size=preparation.size,
        crop_share=preparation.crop_share,
        interpolation=preparation.interpolation,
    )
    write_text(file, train_yaml(settings, request.photos, folder))
    computer = FeatureComputer(network, counts.train + counts.choose)
    images = _first_images(request, folder, computer.images_at_once(preparation.size))
    learning_network = MODELS.build(config_of(request, file).Arch)
    patterns = early_layer_patterns(learning_network)
    freeze(learning_network, patterns, ConfigPlace(("Arch", "freeze")))
    has_norms = set_norm_momentum(learning_network, _NORM_MOMENTUM) > 0
    in_bfloat16 = settings.device == "cpu" and onednn.has_bfloat16() and to_bfloat16(learning_network) > 0
    speeds = measured_speeds(computer, images, learning_network)
    plan = make_plan(speeds, counts, seconds)
    new_settings = replace(
        settings,
        head_epochs=0,
        epochs=1,
        batch_size=BATCH_SIZE,
        learning_rate=_LEARNING_RATE,
        reasons=_reasons(settings, counts, plan, preparation),
        feature_size=plan.size,
        copies=plan.copies,
        freezes_norms=False,
        freeze=patterns,
        has_colors=images.shape[1] == 3,
        norm_momentum=_NORM_MOMENTUM if has_norms else None,
        in_bfloat16=in_bfloat16,
        plan=list(plan.rows),
        speeds=asdict(speeds),
    )
    return new_settings, computer


def _reasons(settings: Settings, counts: Counts, plan: Plan, preparation: Preparation) -> list[str]:
    """Returns lines that explain the settings."""
    mirrored = ", and of mirror images" if plan.copies > 1 else ""
    return [
        f"{counts.train + counts.choose:,} photographs in {settings.class_num} classes, "
        f"of which {counts.choose:,} choose; {counts.judge:,} judge; on {settings.device}",
        f"features at {plan.size} px ({preparation.size} px by {preparation.source}){mirrored}",
        f"minutes on this machine: {plan}",
    ]


def _first_images(request: Request, folder: Path, count: int) -> Array:
    """Returns the photographs that the features begin with, as input of the network, float32 [N, C, H, W].

    Args:
        request: arguments of ``fit``.
        folder: folder with the lists and ``train.yaml``.
        count: number of photographs.
    """
    loader = feature_loader(
        lambda *overrides: config_of(request, folder / TRAIN_YAML, overrides), folder / LISTS, count
    )
    images = next(loader.epoch()).images
    inputs: Array = ModelInput(loader.dataset.device_stage)(images).numpy()
    loader.close()
    return inputs
