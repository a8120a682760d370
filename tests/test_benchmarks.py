"""The benchmarks run on a CPU. Only the format of the results is checked, not the times."""

from __future__ import annotations

import json
from pathlib import Path

import paddle

import ppxcls
from tests.conftest import ROOT, run_tool


def test_the_benchmark_for_gpus_measures(tmp_path: Path) -> None:
    options = {
        "device": "cpu",
        "cards": "1",
        "size": "71",
        "batch": "2",
        "steps": "1",
        "files": "6",
        "precisions": "float32-nhwc",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    result = run_tool(
        "scripts/benchmarks/gpu.py", *words, "--json", tmp_path / "gpu.json", "--profile", tmp_path / "trace"
    )
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((tmp_path / "gpu.json").read_text())
    assert "error" not in row
    assert min(row["ips"], row["ips_loader"], row["parts"]["forward"], row["parts"]["backward"]) > 0
    assert row["share_of_peak"] is None
    assert result.stdout.count("| Xception41 | float32-nhwc | 1 |") == 1
    assert list((tmp_path / "trace/Xception41-float32-nhwc").glob("*.json"))


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
