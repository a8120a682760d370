"""Facts about Paddle and its devices for ``ppxcls doctor``, which collects them in a separate process."""

from __future__ import annotations

import json
import warnings
from typing import Any

import paddle
import paddle.nn.functional as F

from ppxcls.system.devices import available_devices, device_count, has_kernels, kernel_architectures
from ppxcls.system.tf32 import is_tf32_allowed

_VERSIONS = ("cuda", "cudnn", "nccl", "xpu", "xpu_xccl")


def print_facts(facts: dict[str, Any]) -> None:
    """Prints facts in the form that the doctor reads."""
    print("FACTS" + json.dumps(facts))


def paddle_facts() -> dict[str, Any]:
    """Returns the versions, the devices, and what is known of NVIDIA's GPUs."""
    # Paddle 2.6 has no function for the version of NCCL, so a missing key says nothing.
    version = {
        name: str(getattr(paddle.version, name)()) for name in _VERSIONS if hasattr(paddle.version, name)
    }
    devices: list[dict[str, Any]] = []
    for kind in available_devices():
        if kind == "cpu":
            devices.append({"name": "cpu"})
        elif kind == "gpu":
            devices += [_gpu_facts(number) for number in range(device_count("gpu"))]
        else:
            devices += [{"name": f"{kind}:{number}"} for number in range(device_count(kind))]
    return {
        "paddle": paddle.__version__,
        "version": version,
        "devices": devices,
        "architectures": kernel_architectures() if paddle.is_compiled_with_cuda() else [],
        "is_tf32_allowed": is_tf32_allowed(),
    }


def _gpu_facts(number: int) -> dict[str, Any]:
    properties = paddle.device.cuda.get_device_properties(number)
    capability = paddle.device.cuda.get_device_capability(number)
    architectures = kernel_architectures()
    return {
        "name": f"gpu:{number}",
        "model": properties.name,
        "memory_bytes": int(properties.total_memory),
        "capability": list(capability),
        # unknown architectures may include this one
        "has_kernels": not architectures or has_kernels(capability, architectures),
    }


def computes_in_bfloat16() -> bool:
    """True if mixed precision in bfloat16 has an effect on the current device.

    Paddle computes in float32, with a warning, if it does not allow bfloat16 there.
    """
    images, filters = paddle.ones([1, 8, 8, 8]), paddle.ones([8, 8, 1, 1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with paddle.amp.auto_cast(level="O1", dtype="bfloat16"):
                output = F.conv2d(images, filters)
        output.astype("float32").numpy()  # waits for the device
    except Exception:  # a device without such kernels can raise any class of error
        return False
    return "bfloat16" in str(output.dtype)
