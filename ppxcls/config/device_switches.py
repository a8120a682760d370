"""Reads PaddleClas's switches ``Global.use_gpu``, ``use_xpu`` and so on as ``Global.device``."""

from __future__ import annotations

from typing import Any

from ppxcls.config.checks import ConfigPlace, KeyPath, shorten_value

SECTION, DEVICE_KEY = "Global", "device"
DEVICE_SWITCHES = {f"use_{kind}": kind for kind in ("gpu", "xpu", "npu", "mlu", "gcu")}


def replace_device_switches(
    raw: dict[str, Any], sources: dict[KeyPath, str], current_device: str | None = None
) -> None:
    """Replaces the switches in a YAML's mapping, or in that of an override, by ``Global.device``.

    A switch that is true chooses its device. ``use_gpu: False`` chooses the CPU, as in PaddleClas. Another
    switch that is false chooses the CPU only if the device is the one that it turns off.

    Args:
        raw: mapping of the YAML, which is changed.
        sources: source of each key, which is changed too.
        current_device: device without this mapping, if it is known.

    Raises:
        ConfigError: a switch is neither true nor false, or contradicts another key of the mapping.
    """
    section = raw.get(SECTION)
    if not isinstance(section, dict):
        return
    place = ConfigPlace((SECTION,), dict(sources))
    switches = {key: section.pop(key) for key in DEVICE_SWITCHES if key in section}
    for key, value in switches.items():
        if not isinstance(value, bool):
            raise (place / key).error(f"expected true or false, received {shorten_value(value)}")
    chosen_keys = [key for key, value in switches.items() if value]
    if len(chosen_keys) > 1:
        raise (place / chosen_keys[1]).error(f"contradicts {SECTION}.{chosen_keys[0]}; choose one of them")
    if (device := section.get(DEVICE_KEY)) is not None:
        for key, value in switches.items():
            if value != (_kind(device) == DEVICE_SWITCHES[key]):
                raise (place / key).error(
                    f"{str(value).lower()} contradicts Global.device, {device!r}; remove one of them"
                )
        return
    deciding_keys = chosen_keys or [
        key for key in switches if DEVICE_SWITCHES[key] in ("gpu", _kind(current_device))
    ]
    if deciding_keys:
        device = DEVICE_SWITCHES[chosen_keys[0]] if chosen_keys else "cpu"
        is_current = current_device is not None and _kind(current_device) == device
        section[DEVICE_KEY] = current_device if is_current else device  # it may have a number, as in gpu:1
        sources[SECTION, DEVICE_KEY] = (place / deciding_keys[0]).source


def device_of(raw: dict[str, Any]) -> str | None:
    """Returns ``Global.device`` of a YAML's mapping; None if it is not there."""
    section = raw.get(SECTION)
    device = section.get(DEVICE_KEY) if isinstance(section, dict) else None
    return device if isinstance(device, str) else None


def _kind(device: Any) -> str:
    """Returns the kind of a device, such as ``gpu`` for ``gpu:1``."""
    return str(device).partition(":")[0]
