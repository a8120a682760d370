"""Names of devices, what is set for a GPU and in which order, and devices that can't compute.

Paddle's own functions are replaced, because no accelerator is needed for the decisions.
"""

from __future__ import annotations

import os
from typing import Any

import paddle
import pytest

from ppxcls.system import devices, distributed
from ppxcls.system.devices import DeviceError, process_device

SEARCH = "FLAGS_cudnn_exhaustive_search"
PERSISTENT = "FLAGS_cudnn_batchnorm_spatial_persistent"


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four GPUs and one npu."""
    counts = {"npu": 1, "gpu": 4, "cpu": 1}
    monkeypatch.setattr(devices, "available_devices", lambda: list(counts))
    monkeypatch.setattr(devices, "device_count", counts.__getitem__)


@pytest.fixture
def calls(accelerators: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The calls of Paddle, in order, with the state of cuBLAS's variable at each."""
    recorded: list[tuple[str, Any]] = []
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.delenv(SEARCH, raising=False)

    def set_device(name: str) -> None:
        recorded.append((name, os.environ.get("CUBLAS_WORKSPACE_CONFIG")))

    monkeypatch.setattr(paddle, "set_device", set_device)
    monkeypatch.setattr(paddle, "set_flags", lambda flags: recorded.append(("flags", flags)))
    monkeypatch.setattr(distributed, "run_one_operator", lambda device: recorded.append(("operator", device)))
    return recorded


@pytest.mark.every_paddle
@pytest.mark.usefixtures("accelerators")
@pytest.mark.parametrize("name", ["cpu", "gpu", "gpu:0", "gpu:3", "npu", "npu:0"])
def test_names_of_devices(name: str) -> None:
    assert process_device(name, 1) == name


@pytest.mark.usefixtures("accelerators")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu:9", "expected gpu, or gpu:0 to gpu:3, received 'gpu:9'"),
        ("gpu:4", "expected gpu, or gpu:0 to gpu:3, received 'gpu:4'"),
        ("gpu:", "expected gpu, or gpu:0 to gpu:3, received 'gpu:'"),
        ("npu:7", "expected npu, or npu:0, received 'npu:7'"),
        ("npu:x", "expected npu, or npu:0, received 'npu:x'"),
        ("npu:-1", "expected npu, or npu:0, received 'npu:-1'"),
        ("cpu:0", "expected cpu, received 'cpu:0'"),
        ("tpu:0", "expected one of npu, gpu, cpu"),
    ],
)
def test_wrong_names_of_devices(name: str, message: str) -> None:
    with pytest.raises(DeviceError, match=f"^{message}"):
        process_device(name, 1)


@pytest.mark.usefixtures("accelerators")
@pytest.mark.parametrize("name", ["gpu:2", "gpu:9", "npu:0"])
def test_the_launcher_chooses_the_device_of_a_rank(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise all ranks would share one card."""
    warnings: list[str] = []
    monkeypatch.setattr("ppxcls.system.devices.logger.warning", warnings.append)
    assert process_device(name, 4) == name.split(":", maxsplit=1)[0]
    assert warnings == [
        f"the number of Global.device={name} has no effect: "
        "each of the 4 processes uses the device that the launcher chose for it"
    ]
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    process_device(name, 4)
    process_device("gpu", 4)
    assert len(warnings) == 1, "one rank warns, and only about a number"
    with pytest.raises(DeviceError, match="received 'gpu:x'"):
        process_device("gpu:x", 4)


def test_numbers_of_a_config_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle.base.core, "get_custom_device_count", {"npu": 2}.__getitem__)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 3)
    assert [devices.device_count(kind) for kind in ("npu", "gpu", "cpu")] == [2, 3, 1]


@pytest.mark.every_paddle
def test_deterministic_sets_cublas_before_the_device(calls: list[tuple[str, Any]]) -> None:
    distributed.start("gpu:1", deterministic=True, cudnn_search=True)
    assert calls[0] == ("gpu:1", ":4096:8")
    flags = calls[1][1]
    assert flags["FLAGS_cudnn_deterministic"]
    assert flags["FLAGS_embedding_deterministic"] == 1
    assert flags[SEARCH] is False, "both at once are an error of Paddle's"
    assert calls[2][0] == "operator"


@pytest.mark.parametrize("is_float16_channels_last", [False, True])
def test_the_persistent_batch_norm_is_not_part_of_the_search(
    is_float16_channels_last: bool, calls: list[tuple[str, Any]]
) -> None:
    distributed.start("gpu", cudnn_search=True, float16_channels_last=is_float16_channels_last)
    assert calls[0] == ("gpu", None)
    assert calls[1] == ("flags", {SEARCH: True, PERSISTENT: is_float16_channels_last})


def test_only_gpus_get_their_flags(calls: list[tuple[str, Any]]) -> None:
    distributed.start("npu", deterministic=True, cudnn_search=True)
    assert calls == [("npu", None)]


def test_a_search_by_the_environment_contradicts_deterministic(
    calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SEARCH, "0")
    distributed.start("gpu", deterministic=True)
    monkeypatch.setenv(SEARCH, "1")
    distributed.start("gpu")
    calls.clear()
    with pytest.raises(DeviceError, match=f"{SEARCH} to be unset; it is 1") as raised:
        distributed.start("gpu", deterministic=True)
    assert raised.value.setting == "deterministic"
    assert not calls


@pytest.mark.every_paddle
@pytest.mark.parametrize("kind", [RuntimeError, OSError])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "(External) CUDA error(209), no kernel image is available for execution on the device.\n",
            "this Paddle has no kernels for NVIDIA H100 (9.0); "
            "install a build for CUDA 12 or newer (docs/installation.md)",
        ),
        (
            "C++ Traceback\n\n  [Hint: driver] (at x.cc)\n",
            "gpu:1 can't compute: [Hint: driver] (at x.cc)",
        ),
    ],
)
def test_a_device_that_can_not_compute_is_a_line(
    kind: type[Exception], text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise kind(text)

    devices.run_one_operator("cpu")
    monkeypatch.setattr(paddle, "ones", fail)
    monkeypatch.setattr(paddle.device.cuda, "get_device_name", {1: "NVIDIA H100"}.__getitem__)
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", {1: (9, 0)}.__getitem__)
    with pytest.raises(DeviceError) as raised:
        devices.run_one_operator("gpu:1")
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("capability", "is_supported"),
    [
        ((6, 1), True),
        ((7, 5), True),
        ((8, 0), True),
        ((8, 9), True),  # runs the kernels of 8.6
        ((6, 0), False),
        ((9, 0), False),
        ((10, 0), False),
        ((12, 0), False),
    ],
)
def test_kernels_of_paddle_2(
    capability: tuple[int, int], is_supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(paddle.version, "cuda_archs", raising=False)
    monkeypatch.setattr(paddle.version, "cuda", lambda: "11.8")
    assert devices.has_kernels(capability, devices.kernel_architectures()) == is_supported
    monkeypatch.setattr(paddle.version, "cuda", lambda: "12.0")  # not the index's wheel
    assert devices.kernel_architectures() == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [([80, 90, 120], [(8, 0), (9, 0), (12, 0)]), (["90a", 75], [(7, 5), (9, 0)]), ([], []), ("", [])],
)
def test_kernels_of_paddle_3(
    value: Any, expected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paddle.version, "cuda_archs", lambda: value, raising=False)
    assert devices.kernel_architectures() == expected


@pytest.mark.parametrize(
    ("error", "is_about_memory"),
    [
        (MemoryError(), True),
        (RuntimeError("ResourceExhaustedError: \n\nOut of memory error on GPU 0."), True),
        (SystemError("(Fatal) ResourceExhausted"), True),
        (OSError("(External) CUBLAS error(3), CUBLAS_STATUS_ALLOC_FAILED."), True),
        (OSError("(External) CUDA error(2), cudaErrorMemoryAllocation."), True),
        (OSError("(External) CUDA error(700), an illegal memory access was encountered."), False),
        (OSError(12, "Cannot allocate memory"), False),  # a file or a process of the system
        (RuntimeError("cuDNN is missing"), False),
        (ValueError("memory"), False),
    ],
)
def test_a_full_memory_is_recognised(error: Exception, is_about_memory: bool) -> None:
    assert devices.is_out_of_memory(error) == is_about_memory
