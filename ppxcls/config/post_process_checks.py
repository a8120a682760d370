"""Compares the keys of ``Infer.PostProcess`` with its name and with the network."""

from __future__ import annotations

from ppxcls.config.figures import class_num_of
from ppxcls.config.sections import Config

_KEYS_OF_THRESHOLD = ("threshold", "label_0", "label_1")


def check_post_process(config: Config) -> None:
    """Refuses keys of ``ThreshOutput`` without this name, and the name without what it needs.

    Raises:
        ConfigError: a key has no effect, there is no threshold, or there are not two classes.
    """
    section = config.Infer.PostProcess if config.Infer else None
    if section is None:
        return
    where = config.where("Infer.PostProcess")
    if section.name == "ThreshOutput":
        if section.threshold is None:
            raise (where / "threshold").error("ThreshOutput: expected a number from 0 to 1, received null")
        if class_num_of(config) not in (None, 2):
            raise (where / "name").error(
                f"ThreshOutput: expected a network with 2 classes, received {class_num_of(config):,}"
            )
        return
    for key in _KEYS_OF_THRESHOLD:
        if getattr(section, key) is not None:
            raise (where / key).error(f"only ThreshOutput has this key, and the name is {section.name}")
