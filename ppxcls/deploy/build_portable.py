"""A network's runner that can be pickled, so that another process can build the same network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paddle import nn

from ppxcls.build.network import build_network
from ppxcls.build.start import start_processes
from ppxcls.checkpoints.files import State
from ppxcls.config.load import load_config
from ppxcls.config.plugins import changed_plugin, plugin_codes
from ppxcls.config.sections import Config, to_plain
from ppxcls.data.errors import DataError
from ppxcls.data.transforms import DeviceStage
from ppxcls.deploy.feature_network import FeatureNetwork
from ppxcls.deploy.portable import PortableRunner
from ppxcls.deploy.runners import Runner, network_runner
from ppxcls.models.weights import model_state, set_weights


def network_settings(config: Config) -> dict[str, Any]:
    """Returns what another process needs to build the same network, without weights.

    It is a part of the config, and the code of the plugins, so that no other code runs there.
    """
    arch = {key: value for key, value in to_plain(config.Arch).items() if key != "pretrained"}
    section = {"device": config.Global.device, "plugins": config.Global.plugins}
    return {"config": {"Global": section, "Arch": arch}, "plugin codes": plugin_codes()}


def portable_network_runner(
    settings: dict[str, Any], network: nn.Layer, stage: DeviceStage, image_count: int
) -> Runner:
    """Returns a runner of a network that can be pickled.

    Args:
        settings: result of ``network_settings``.
        network: network with its weights; a ``FeatureNetwork`` for features.
        stage: device part of the transforms.
        image_count: number of images to predict, if known; see ``network_runner``.
    """
    inner = network.network if isinstance(network, FeatureNetwork) else network
    settings = settings | {"features": inner is not network}

    def arguments() -> tuple[Any, ...]:
        return settings, model_state(inner), stage, image_count

    return PortableRunner(network_runner(network, stage, image_count), _rebuilt_network_runner, arguments)


def _rebuilt_network_runner(
    settings: dict[str, Any], state: State, stage: DeviceStage, image_count: int
) -> Runner:
    """Returns a runner of a network with the weights of a pickle."""
    if (path := changed_plugin(settings["plugin codes"])) is not None:
        raise DataError(f"{path}: the plugin was changed after the predictor was pickled; load the run again")
    config = load_config(settings["config"])
    start_processes(config)
    network = build_network(config, "infer", None)
    set_weights(network, state, Path("the pickle"))
    if settings["features"]:
        network = FeatureNetwork(network)
    return portable_network_runner(settings, network, stage, image_count)
