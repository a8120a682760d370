"""The doctor reports a sound installation, and every kind of broken installation in one line."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paddle
import pytest

from ppxcls.cli import device_facts, doctor
from tests.conftest import ROOT, run_tool


def lines_of(folder: Path, *arguments: str, **variables: str) -> tuple[int, dict[str, list[str]]]:
    """Returns the exit code and the texts by name. Modules of the folder precede the installed ones."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **variables}
    result = run_tool("doctor", *arguments, env=environment)
    assert result.stderr == ""
    assert "Traceback" not in result.stdout
    found: dict[str, list[str]] = {}
    for line in result.stdout.splitlines()[:-1]:
        found.setdefault(line[5:17].strip(), []).append(f"{line[:3].strip()}: {line[18:]}")
    return result.returncode, found


@pytest.mark.every_paddle
def test_a_sound_installation(tmp_path: Path) -> None:
    code, found = lines_of(tmp_path)
    assert code == 0, found
    assert next(iter(found)) == "ppxcls"
    assert {"packages", "images", "threads", "disk", "shared", "Paddle", "loader", "cpu"} <= found.keys()
    assert len(found["cpu"]) == 1
    assert "for one process: loader.num_workers up to " in found["loader"][0]
    assert found["shared"][0].endswith("not needed, because the loader's memory is anonymous (memfd)")
    assert "s per step of Xception41, 8 images of 96 px" in found["cpu"][0]


@pytest.mark.parametrize(
    ("module", "text", "name", "expected"),
    [
        (
            "paddle",
            "raise ImportError('libcudnn.so.9: cannot open shared object file')",
            "Paddle",
            "libcudnn.so.9: cannot open",
        ),
        ("paddle", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "Paddle", "ended by signal 11"),
        (
            "paddle",
            "__version__ = '2.4.0'",
            "Paddle",
            "ppxcls needs PaddlePaddle 2.6 or newer; 2.4.0 is installed",
        ),
        (
            "cv2",
            "raise ImportError('libGL.so.1: cannot open shared object file')",
            "images",
            "ImportError: libGL.so.1: cannot",
        ),
        ("simplejpeg", "raise OSError('bad\\x1b[31m wheel')", "images", r"OSError: bad\x1b[31m wheel"),
    ],
)
def test_what_is_broken_is_a_line(module: str, text: str, name: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(text)
    code, found = lines_of(tmp_path)
    assert code == 1
    bad = [line for line in found[name] if line.startswith("BAD: ")]
    assert any(expected in line for line in bad), found


def test_a_disk_that_can_not_be_written(tmp_path: Path) -> None:
    code, found = lines_of(tmp_path, "--output", str(tmp_path / "none"))
    assert code == 1
    assert found["disk"][0].startswith("BAD: FileNotFoundError")


GIB = 1 << 30


def gpus(*cards: tuple[str, int, tuple[int, int]], **facts: Any) -> dict[str, Any]:
    """Returns facts of a machine with these cards: model, GiB, compute capability."""
    devices = [
        {
            "name": f"gpu:{number}",
            "model": model,
            "memory_bytes": gib * GIB,
            "capability": list(capability),
            "has_kernels": True,
        }
        for number, (model, gib, capability) in enumerate(cards)
    ]
    version = {"cuda": "12.6", "nccl": "2.25"}
    return {
        "paddle": "3.3.1",
        "version": version,
        "devices": [*devices, {"name": "cpu"}],
        "architectures": [[8, 0], [9, 0]],
        "is_tf32_allowed": True,
        **facts,
    }


def lines(findings: Any) -> list[str]:
    return [f"{'ok' if finding.is_ok else 'BAD'}: {finding.text}" for finding in findings]


H100 = ("NVIDIA H100", 80, (9, 0))


@pytest.mark.parametrize(
    ("version", "is_bad"),
    [
        ({"cuda": "11.8", "cudnn": "8.6"}, False),  # Paddle 2.6 can't report NCCL's version
        ({"cuda": "12.6", "nccl": "2.25"}, False),
        ({"cuda": "12.6", "nccl": "False"}, True),
        ({"cuda": "12.6", "nccl": "0"}, True),
    ],
)
def test_nccl_is_judged_only_if_its_version_is_known(version: dict[str, str], is_bad: bool) -> None:
    found = lines(doctor._paddle(gpus(H100, H100, version=version)))
    assert [line.startswith("BAD: 2 devices, and no nccl") for line in found] == [False] + [True] * is_bad
    assert len(lines(doctor._paddle(gpus(H100, version=version)))) == 1, "one card needs none"


def test_the_loader_of_several_cards_shares_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 20)
    assert lines(doctor._loader(gpus(H100, H100, H100, H100, H100, H100, H100, H100))) == [
        "ok: 20 usable cores for 8 processes, one per device: loader.num_workers up to 2"
    ]
    assert lines(doctor._loader(gpus())) == [
        "ok: 20 usable cores for one process: loader.num_workers up to 20"
    ]
    monkeypatch.setattr(doctor, "usable_cores", lambda: 1)
    assert lines(doctor._loader(gpus(H100, H100)))[0].endswith("up to 1")


@pytest.mark.parametrize(
    ("card", "is_tf32_allowed", "expected"),
    [
        (H100, True, ["ok: TF32 is on: float32 products have 10 bits"]),
        (H100, False, ["ok: TF32 is off"]),
        (("Tesla V100", 32, (7, 0)), True, []),
    ],
)
def test_tf32_is_reported_for_cards_that_have_it(
    card: tuple[str, int, tuple[int, int]], is_tf32_allowed: bool, expected: list[str]
) -> None:
    facts = gpus(card, is_tf32_allowed=is_tf32_allowed)
    found = lines(doctor._gpu(facts["devices"][0], facts))
    assert found[:-1] == expected
    assert not lines(doctor._gpu(facts["devices"][-1], facts)), "nothing about the CPU"


@pytest.mark.parametrize(
    ("gib", "is_enough"), [(16, False), (24, False), (30, False), (32, True), (80, True)]
)
def test_a_small_memory_is_compared_with_the_batches_of_the_configs(gib: int, is_enough: bool) -> None:
    text = doctor._memory_text(gib * GIB)
    assert "(computed): Xception41 23, xception41 25, Xception65 30" in text
    assert (f"; this device has {gib}: try ppxcls train --find-batch" in text) != is_enough


def test_a_card_without_kernels_is_named() -> None:
    facts = gpus(H100, architectures=[[8, 0], [8, 6]])
    device = {**facts["devices"][0], "has_kernels": False}
    assert lines(doctor._gpu(device, facts))[0] == (
        "ok: compute capability 9.0, but this Paddle's kernels are for 8.0, 8.6; see docs/installation.md"
    )


def test_bfloat16_is_reported_for_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"first": 1.0, "seconds": 0.5, "loss": 2.0, "bfloat16": False}
    monkeypatch.setattr(doctor, "_run", lambda *_: (facts, ""))
    assert lines(doctor._step({"name": "npu:0"}))[1:] == [
        "ok: AMP in bfloat16 has no effect, Paddle computes in float32"
    ]
    facts["bfloat16"] = True
    assert lines(doctor._step(gpus(H100)["devices"][0]))[1:] == ["ok: AMP in bfloat16 has an effect"]
    assert len(lines(doctor._step({"name": "cpu"}))) == 1


def test_memory_is_said_for_devices_that_paddle_does_not_know() -> None:
    assert len(lines(doctor._gpu({"name": "npu:1"}, {}))) == 1
    assert (
        "need up to this many GiB (computed): Xception41 23" in lines(doctor._gpu({"name": "npu:1"}, {}))[0]
    )
    assert not lines(doctor._gpu({"name": "cpu"}, {}))


def test_facts_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA L40S", total_memory=48 * GIB)
    monkeypatch.setattr(device_facts, "available_devices", lambda: ["npu", "gpu", "cpu"])
    monkeypatch.setattr(device_facts, "device_count", {"npu": 2, "gpu": 1}.__getitem__)
    monkeypatch.setattr(device_facts, "kernel_architectures", lambda: [(8, 6)])
    monkeypatch.setattr(paddle.device.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda number: (8, 9))
    gpu = {"name": "gpu:0", "model": "NVIDIA L40S", "memory_bytes": 48 * GIB, "capability": [8, 9]}
    facts = device_facts.paddle_facts()
    assert facts["devices"] == [
        {"name": "npu:0"},
        {"name": "npu:1"},
        {**gpu, "has_kernels": True},
        {"name": "cpu"},
    ]
    assert not device_facts.computes_in_bfloat16(), "Paddle's AMP does nothing on the CPU"


def test_the_table_of_batches_follows_from_the_bounds() -> None:
    text = (ROOT / "docs/imagenet.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    names = next(row for row in rows if row[0] == "memory of the card")[1:]
    cards = [row for row in rows if row[0].endswith(" GiB")]
    assert len(cards) >= 5
    for memory, *cells in cards:
        available_mib = (int(memory.split()[0]) - 2) * 1024
        for name, cell in zip(names, cells, strict=True):
            mib = doctor._MIB_PER_IMAGE[name.split(",")[0]] / (2 if name.endswith(", half") else 1)
            assert int(cell) == available_mib // mib // 8 * 8, (memory, name)
