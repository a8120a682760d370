"""A network that also returns its features: the input of its classifier, for ``infer --features``."""

from __future__ import annotations

import paddle
from paddle import nn

from ppxcls.config.checks import ConfigError
from ppxcls.models.logits import checked_logits, network_name, set_network_name


class FeatureNetwork(nn.Layer):
    """A network that returns its features and its logits beside each other, [N, F + class_num].

    Attributes:
        feature_count: number of features F.

    Args:
        network: network in evaluation mode. Its classifier is its last ``nn.Linear``.

    Raises:
        ConfigError: the network has no ``nn.Linear``.
    """

    def __init__(self, network: nn.Layer) -> None:
        super().__init__()
        self._name = network_name(network) or type(network).__name__
        set_network_name(self, self._name)
        classifiers = [layer for layer in network.sublayers() if isinstance(layer, nn.Linear)]
        if not classifiers:
            raise ConfigError(f"the network {self._name}: expected an nn.Linear, whose input is the features")
        self.network = network
        self.feature_count = int(classifiers[-1].weight.shape[0])
        self._inputs: list[paddle.Tensor] = []
        classifiers[-1].register_forward_pre_hook(lambda _, inputs: self._inputs.append(inputs[0]))

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Maps [N, C, H, W] to [N, F + class_num].

        Raises:
            ConfigError: the classifier was not called once with one row for each image.
        """
        self._inputs.clear()
        logits = self.network(images)
        if paddle.in_dynamic_mode():  # a traced output is no tensor yet
            checked_logits(logits, self.network)
        shapes = [list(tensor.shape) for tensor in self._inputs]
        if len(shapes) != 1 or len(shapes[0]) != 2:
            raise ConfigError(
                f"the network {self._name}: expected that its last nn.Linear gets features [N, F] once, "
                f"received {shapes}"
            )
        return paddle.concat([self._inputs.pop().astype(logits.dtype), logits], axis=1)
