"""The precisions and layouts that ``gpu.py`` measures, as overrides of a config.

``depthwise32`` computes the depthwise convolutions in float32 under O1. The others take the default.
"""

from __future__ import annotations

import dataclasses

NHWC = "Arch.data_format=NHWC"
HALF_DEPTHWISE = "half_depthwise"  # key of AMP, which older releases lack


def amp(dtype: str, level: str = "O1", *, has_float32_depthwise: bool = False) -> str:
    """Returns an override that turns AMP on, for float16 with a dynamic loss scale."""
    keys = {"dtype": dtype, "level": level}
    if dtype == "float16":
        keys |= {"scale_loss": "128.0", "use_dynamic_loss_scaling": "true"}
    if has_float32_depthwise:
        keys[HALF_DEPTHWISE] = "false"
    return f"AMP={{{', '.join(f'{key}: {value}' for key, value in keys.items())}}}"


PRECISIONS = {
    "float32": [],
    "float32-nhwc": [NHWC],
    "float16": [amp("float16")],
    "float16-nhwc": [amp("float16"), NHWC],
    "float16-depthwise32": [amp("float16", has_float32_depthwise=True)],
    "float16-depthwise32-nhwc": [amp("float16", has_float32_depthwise=True), NHWC],
    "bfloat16": [amp("bfloat16")],
    "bfloat16-nhwc": [amp("bfloat16"), NHWC],
    "bfloat16-depthwise32": [amp("bfloat16", has_float32_depthwise=True)],
    "bfloat16-depthwise32-nhwc": [amp("bfloat16", has_float32_depthwise=True), NHWC],
    "float16-O2-nhwc": [amp("float16", "O2"), NHWC],
    "bfloat16-O2-nhwc": [amp("bfloat16", "O2"), NHWC],
    "float16-nhwc-static": [amp("float16"), NHWC, "Global.to_static=True", "Global.cudnn_search=True"],
}


def can_choose_depthwise() -> bool:
    """True if this package's config has the precision of the depthwise convolutions under O1."""
    from ppxcls.config.sections import AMPSection

    return HALF_DEPTHWISE in {field.name for field in dataclasses.fields(AMPSection)}


def available_precisions() -> list[str]:
    """Returns the names of the precisions that this package's config can express."""
    return [name for name in PRECISIONS if "depthwise" not in name or can_choose_depthwise()]
