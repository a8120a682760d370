"""The benchmarks run on a CPU. Only the format of the results is checked, not the times."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import paddle
import pytest

import ppxcls
from ppxcls.config.sections import LoaderSection
from tests.conftest import ROOT, load_script, run_tool


def test_the_benchmark_for_gpus_measures(tmp_path: Path) -> None:
    options = {
        "device": "cpu",
        "cards": "1",
        "size": "71",
        "batch": "2",
        "steps": "1",
        "files": "6",
        "loader-batches": "2",
        "precisions": "float32-nhwc",
        "card": "NVIDIA H100 80GB HBM3",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    words += ["--no-peer", "--json", tmp_path / "gpu.json", "--profile", tmp_path / "trace"]
    result = run_tool("scripts/benchmarks/gpu.py", *words)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((tmp_path / "gpu.json").read_text())
    assert "error" not in row, row
    names = ("input", "forward", "loss", "backward", "optimizer", "scoring")
    assert min(row["ips"], row["ips_loader"], *(row["parts"][name] for name in names)) > 0
    assert row["parts"]["all-reduce"] == 0  # one card
    assert row["peak"] == "TF32"
    assert 0 < row["share_of_peak"] < 1
    assert row["memory_gib"] is None  # Paddle has no figure for a CPU
    assert row["operators_in_all"] == sum(row["operators"].values()) > 400
    assert result.stdout.count("| Xception41 | float32-nhwc | 1 |") == 1
    assert "without timm on torch" in result.stdout
    assert list((tmp_path / "trace/Xception41-float32-nhwc").glob("*.json"))


def test_an_error_stays_in_its_row(tmp_path: Path) -> None:
    words = ["--device", "no_such_device", "--batch", "2", "--loader-batches", "1", "--files", "2"]
    words += ["--precisions", "float32", "--no-peer", "--json", tmp_path / "gpu.json"]
    result = run_tool("scripts/benchmarks/gpu.py", *words)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((tmp_path / "gpu.json").read_text())
    assert "no_such_device" in row["error"]
    assert f"| Xception41 | float32 | 1 | {row['error']} |" in result.stdout


@pytest.mark.parametrize(
    ("device", "precision", "name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "float32-nhwc", "TF32", 494),
        ("NVIDIA H100 PCIe", "bfloat16-nhwc", "half", 756),
        ("NVIDIA A100-SXM4-80GB", "float16", "half", 312),
        ("NVIDIA A10", "float32", "TF32", 62.5),
        ("Tesla V100-SXM2-32GB", "float32", "float32", 15.7),
        ("Iluvatar BI-V100", "float16", "half", 147),
        ("NVIDIA L40S", "float32", "TF32", 183),
    ],
)
def test_a_share_is_measured_against_the_right_peak(
    device: str, precision: str, name: str, tflops: float
) -> None:
    assert load_script("benchmarks/card_peaks").peak(device, precision) == (name, tflops)


def test_an_unknown_card_has_no_peak() -> None:
    assert load_script("benchmarks/card_peaks").peak("cpu, 2 cores", "float32") is None


def test_precisions_are_keys_of_the_config() -> None:
    """A precision whose key this release lacks is left out."""
    precisions = load_script("benchmarks/precisions")
    names = precisions.available_precisions()
    assert {"float32", "float16-nhwc", "bfloat16-nhwc", "bfloat16-O2-nhwc", "float16-nhwc-static"} <= {*names}
    for name in names:
        ppxcls.load_config(ROOT / "configs/Xception41.yaml", precisions.PRECISIONS[name])


def test_multiplications_of_a_network() -> None:
    network = paddle.nn.Sequential(
        paddle.nn.Conv2D(3, 8, 3, padding=1),
        paddle.nn.Conv2D(8, 8, 3, groups=8),
        paddle.nn.Flatten(),
        paddle.nn.Linear(8 * 5 * 5, 4),
    )
    expected = 7 * 7 * 8 * 3 * 9 + 5 * 5 * 8 * 9 + 8 * 5 * 5 * 4
    assert load_script("benchmarks/card_peaks").multiplications(network, 7) == expected


def test_all_comparisons_in_one_table(tmp_path: Path) -> None:
    words = ["--quick", "--only", "loader.py", "--json", tmp_path / "ratios.json"]
    result = run_tool("scripts/benchmarks/all.py", *words)
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "ratios.json").read_text())
    assert found["machine"]["cores"] > 0
    made = [row for row in found["rows"] if row["what"] == "make, packed, a core"]
    assert [(row["benchmark"], row["peer"]) for row in made] == [
        ("loader.py", "PaddleClas's steps written out")
    ]
    assert all(row["ratio"] == row["ours"] / row["theirs"] > 0 for row in found["rows"])
    assert result.stdout.count("| make, packed, a core | PaddleClas's steps written out |") == 1


def test_operators_of_a_step(tmp_path: Path) -> None:
    words = ["--only", "Momentum, EMA", "--json", tmp_path / "counts.json", "--against", ROOT, "--operators"]
    result = run_tool("scripts/benchmarks/operators.py", *words)
    assert result.returncode == 0, result.stderr
    (counts,) = json.loads((tmp_path / "counts.json").read_text()).values()
    network = ppxcls.build_model("Xception41")
    convolutions = [layer for layer in network.sublayers() if isinstance(layer, paddle.nn.Conv2D)]
    for part, suffix in (("forward", ""), ("backward", "_grad")):
        names = [f"{kind}conv2d{suffix}" for kind in ("", "depthwise_")]
        assert sum(counts[part][name] for name in names) == len(convolutions)
    assert min(sum(counts[part].values()) for part in ("input", "loss", "optimizer", "EMA", "scoring")) > 0
    assert not counts["clipping"]
    total = sum(sum(names.values()) for names in counts.values())
    assert f"| Momentum, EMA | {total:,} |" in result.stdout
    assert f"| {total:,} | 1.00 |" in result.stdout
    assert "conv2d_grad" in result.stdout


def test_loading_beside_training() -> None:
    options = {
        "threads": "1,2",
        "processes": "1",
        "rounds": "1",
        "operators": "50",
        "repetitions": "2",
        "settle": "0",
        "batches": "3",
        "device-ms": "5",
        "steps": "2",
        "batch": "4",
        "size": "71",
        "images": "8",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    result = run_tool("scripts/benchmarks/loading_beside_training.py", *words)
    assert result.returncode == 0, result.stderr
    loaders = ["1 loader thread", "2 loader threads"]
    if "num_processes" in {field.name for field in dataclasses.fields(LoaderSection)}:
        loaders.append("1 loader process")
    else:
        assert "without loader processes: the config has no" in result.stdout
    for name in ("alone", *loaders, "a process that discards its batches"):
        assert f"50 operators, {name}: " in result.stdout
    image_kilobytes = 71 * 71 * 3 / 1000
    for name in loaders:
        (row,) = re.findall(rf"^\| {name} \| (.+) \|$", result.stdout, re.MULTILINE)
        rate, kilobytes, *_ = row.split(" | ")
        assert float(rate) > 0
        assert float(kilobytes) == pytest.approx(image_kilobytes, abs=0.05)
        assert f"a step of 5 ms and 50 operators, {name}: " in result.stdout
