"""The searches for a learning rate and for a batch size."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.checkpoints.files import read_checkpoint
from ppxcls.fitting import folder as photographs
from ppxcls.tuning import batch_size, build
from ppxcls.tuning.batch_size import BatchSizes
from ppxcls.tuning.rate_range import RateRange, draw
from tests.conftest import run_tool, write_images


def table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_suggestion_lies_on_the_slope() -> None:
    """The loss is flat, falls around 1e-3, is lowest at 1e-2, and then diverges."""
    rates = np.geomspace(1e-6, 1, 121)
    logs = np.log10(rates)
    losses = 2.3 - 1.5 / (1 + np.exp(-4 * (logs + 3))) + np.exp(3 * (logs + 1))
    noise = np.random.default_rng(0).normal(0, 0.02, len(rates))
    found = RateRange(rates, losses + noise)
    assert 5e-4 < found.suggestion < 5e-3
    assert f"learning rate: {found.suggestion:g} is suggested" in str(found)


@pytest.mark.parametrize("end", [3.0, 1.0])
def test_a_loss_that_does_not_fall_suggests_nothing(end: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 20)
    found = RateRange(np.geomspace(1e-3, 1, 20), np.linspace(1, end, 20) + noise)
    assert found.suggestion is None
    assert "the loss did not fall" in str(found)
    pytest.importorskip("matplotlib")
    assert draw(found)


def test_no_rate_at_an_edge_of_the_range_is_suggested() -> None:
    """The loss falls from the first step on, or until the last one, or it is noise."""
    rates = np.geomspace(1e-6, 10, 100)
    logs = np.log10(rates)
    falling_at_once = RateRange(rates, 0.5 + np.exp(-8 * (logs + 6)) + np.maximum(logs + 4, 0))
    assert falling_at_once.suggestion is None
    assert "there are too few images or steps" in str(falling_at_once)
    falling_to_the_end = RateRange(rates, 3 - 2 / (1 + np.exp(-4 * (logs - 0.5))))
    assert falling_to_the_end.suggestion is None
    assert "none is suggested, because the loss still fell at the highest rate" in str(falling_to_the_end)
    for seed in range(20):
        noise = RateRange(rates, 1.4 + np.random.default_rng(seed).normal(0, 0.15, 100))
        assert noise.suggestion is None, seed
        assert "the loss fell by no more than its noise" in str(noise) or "did not fall" in str(noise)


@pytest.mark.parametrize("steps", [50, 100])
def test_a_noisy_curve_gives_a_rate_on_its_slope(steps: int) -> None:
    """The loss falls around 1e-4, as for 30 photographs in batches of 8. The noise is a fifth of the fall."""
    logs = np.linspace(-6, 1, steps)
    losses = 1.5 - 1 / (1 + np.exp(-4 * (logs + 4))) + np.exp(3 * (logs + 1))
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.2 if steps == 100 else 0.1, steps)
        suggestion = RateRange(10**logs, losses + noise).suggestion
        assert suggestion is not None, seed
        assert 3e-5 <= suggestion <= 1e-3, seed


def test_fit_keeps_its_rate_if_none_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = argparse.Namespace(output=tmp_path, overrides=[], trust=False)
    settings = argparse.Namespace(learning_rate=0.0003, reasons=["one"])
    rates = RateRange(np.geomspace(1e-6, 10, 100), np.full(100, 1.4))
    monkeypatch.setattr(photographs.tuning, "find_lr", lambda *_, **__: rates)
    monkeypatch.setattr(photographs, "replace", lambda _, **keys: keys)
    found = photographs._with_learning_rate(request, settings)
    assert found["learning_rate"] == 0.0003
    assert found["reasons"] == ["one", str(rates)]
    assert "the loss did not fall" in str(rates)


def test_the_first_smoothed_loss_has_no_bias() -> None:
    assert np.allclose(RateRange(np.ones(5), np.full(5, 2.0)).smoothed, 2.0)


@pytest.mark.parametrize("update_freq", [1, 2])
def test_a_range_test_leaves_the_run_as_it_is(small: Callable[..., Path], update_freq: int) -> None:
    pytest.importorskip("matplotlib")
    file = small(**{"Global.update_freq": update_freq})
    run = ppxcls.build_trainer(ppxcls.load_config(file))
    run.fit()
    before = {f.name: f.stat().st_mtime_ns for f in run.output_dir.iterdir()}
    found = ppxcls.find_lr(file, steps=30)
    folder = run.output_dir.parent / "find" / run.output_dir.name
    assert {f.name: f.stat().st_mtime_ns for f in run.output_dir.iterdir()} == before
    assert not list(folder.glob("*.pdparams"))
    assert (folder / build.PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    rows = table(folder / build.RATES_FILE)
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(found.rates, rel=1e-5)
    assert found.rates[0] == pytest.approx(1e-6)
    assert len(rows) == len(found.losses) >= 10
    assert found.suggestion is None or found.suggestion < 10


def test_a_range_test_trains_at_its_rates(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    train_on = ppxcls.train.trainer.Trainer.train_on

    def noted(self: Any, batch: Any) -> Any:
        result = train_on(self, batch)
        seen.append(result.lr)
        return result

    monkeypatch.setattr(ppxcls.train.trainer.Trainer, "train_on", noted)
    found = ppxcls.find_lr(small(), steps=20)
    assert seen[: len(found.rates)] == pytest.approx(found.rates, rel=1e-4)


def test_scaled_rates_are_suggested_as_the_yaml_says_them(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizer uses a quarter of the configured rate."""
    seen: list[float] = []
    step = ppxcls.train.learner.Learner.step
    monkeypatch.setattr(
        ppxcls.train.learner.Learner,
        "step",
        lambda self, *a, **k: seen.append(self.rate) or step(self, *a, **k),
    )
    found = ppxcls.find_lr(small(**{"Global.scale_lr": "linear", "Global.base_batch_size": 16}), steps=15)
    assert seen[:15] == pytest.approx(found.rates[: len(seen)] / 4, rel=1e-4)


def test_bad_samples_and_few_steps(small: Callable[..., Path], tmp_path: Path) -> None:
    """A batch without any readable sample gives no rate.

    The output folder contains an apostrophe, which must be quoted in YAML.
    """
    data = write_images(tmp_path / "data", 12)
    for file in sorted((data / "train").iterdir())[4:8]:
        file.write_bytes(b"no image")
    keys = {
        "Global.on_bad_image": "skip",
        "Global.max_bad_share": 0.5,
        "Global.output_dir": str(tmp_path / "o'clock"),
    }
    keys |= {
        f"DataLoader.Train.dataset.{k}": v
        for k, v in (("image_root", str(data)), ("cls_label_path", str(data / "train_list.txt")))
    }
    file = small(**keys, **{"DataLoader.Train.sampler.shuffle": False})
    found = ppxcls.find_lr(file, steps=15)
    assert len(found.rates) == len(found.losses) == 10
    with pytest.raises(ppxcls.DataError, match="at least 10 steps"):
        ppxcls.find_lr(file, steps=5)


def test_several_processes(small: Callable[..., Path], tmp_path: Path) -> None:
    """All processes decide alike; the batch-size search needs a single process."""
    file = small()
    found = run_tool("tools/train.py", "-c", file, "--find-lr", processes=2, log_dir=tmp_path / "log")
    assert found.returncode == 0, found.stdout + found.stderr
    refused = run_tool("tools/train.py", "-c", file, "--find-batch", processes=2, log_dir=tmp_path / "log2")
    assert refused.returncode != 0
    assert "the batch-size search needs a single process" in (tmp_path / "log2/workerlog.0").read_text()


def test_a_training_that_diverges_by_itself(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppxcls.tuning.rate_range.MAX_RATE", 1e35)
    with pytest.raises(ppxcls.TrainingError, match=r"the loss is finite at \d rates"):
        ppxcls.find_lr(small(), steps=12)


def test_no_curve_is_needed_to_the_end() -> None:
    pytest.importorskip("matplotlib")
    assert draw(RateRange(np.geomspace(1e-6, 1e-5, 10), np.ones(10))).startswith(b"\x89PNG")


def test_the_command_trains_nothing(small: Callable[..., Path], tmp_path: Path) -> None:
    result = run_tool("tools/train.py", "-c", small(), "--find-lr")
    assert result.returncode == 0, result.stderr
    assert "is suggested" in result.stderr + result.stdout
    assert [f.name for f in (tmp_path / "output").iterdir()] == ["find"]


@pytest.mark.parametrize("name", ["find", "find/SmallNetwork"])
@pytest.mark.parametrize("search", [build.find_lr, build.find_batch])
def test_nothing_is_written_through_a_link(
    search: Callable[..., Any], name: str, small: Callable[..., Path], tmp_path: Path
) -> None:
    """Not even to an empty folder or to another run, because a search is no run of the user."""
    victim, link = tmp_path / "victim", tmp_path / "output" / name
    victim.mkdir()
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    for content in ([], ["run.lock"]):
        for file in content:
            (victim / file).touch()
        with pytest.raises(OSError, match="a link out of its folder; remove it"):
            search(small())
        assert [file.name for file in victim.iterdir()] == content


def fails_above(limit: int, error: Exception) -> Callable[..., Any]:
    """Returns a search step that needs a megabyte per image, and fails above the limit."""

    def steps(self: Any, size: int) -> tuple[float, int]:
        if size > limit:
            raise error
        return 0.1 + size / 100, 10_000_000 + size * 1_000_000

    return steps


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("ResourceExhaustedError: Out of memory error on GPU 0"),
        OSError("(External) CUDNN error(4), CUDNN_STATUS_ALLOC_FAILED."),
    ],
)
@pytest.mark.parametrize("limit", [2, 3, 20, 47, 300])
def test_the_largest_batch_of_an_accelerator(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, limit: int, error: Exception
) -> None:
    monkeypatch.setattr(batch_size, "_largest_size", lambda *_: (4096, "sizes above 4096 are not tried"))
    monkeypatch.setattr(batch_size._Attempt, "_steps", fails_above(limit, error))
    monkeypatch.setattr(batch_size, "_free_host_bytes", lambda: 1e15)
    found = ppxcls.find_batch(small())
    assert 0.8 * limit - 8 <= found.largest <= limit
    assert found.largest > limit / 2
    assert "don't fit" in found.limit
    sizes = [size for size, _, _ in found.measurements]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("count", "samples_per_step", "sizes", "reason"),
    [
        (1, None, [1], "the training data has 1 images"),
        (2, None, [2], "the training data has 2 images"),
        (5, None, [2, 4, 5], "the training data has 5 images"),
        (30, None, [2, 4, 8, 16, 30], "the training data has 30 images"),
        (30, 12, [2, 4, 6, 12], "Global.samples_per_step is 12"),
        (30, 9, [1, 3, 9], "Global.samples_per_step is 9"),
        (5, 64, [2, 4], "the training data has 5 images"),
    ],
)
def test_no_batch_is_larger_than_the_data(
    count: int,
    samples_per_step: int | None,
    sizes: list[int],
    reason: str,
    small: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_size._Attempt, "_steps", fails_above(4096, MemoryError()))
    monkeypatch.setattr(batch_size, "_free_host_bytes", lambda: 1e15)
    data = write_images(tmp_path / "data", count)
    keys: dict[str, Any] = {
        f"DataLoader.Train.dataset.{key}": value
        for key, value in (("image_root", str(data)), ("cls_label_path", str(data / "train_list.txt")))
    }
    if samples_per_step:
        keys |= {"Global.samples_per_step": samples_per_step, "DataLoader.Train.sampler.batch_size": 1}
    found = ppxcls.find_batch(small(**keys))
    assert [size for size, _, _ in found.measurements] == sizes
    assert found.limit == reason


def test_another_error_is_no_lack_of_memory(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size._Attempt, "_steps", fails_above(4, RuntimeError("cuDNN is missing")))
    with pytest.raises(RuntimeError, match="cuDNN"):
        ppxcls.find_batch(small())
    fault = OSError("(External) CUDA error(700), an illegal memory access was encountered.")
    monkeypatch.setattr(batch_size._Attempt, "_steps", fails_above(4, fault))
    with pytest.raises(OSError, match="illegal memory access"):
        ppxcls.find_batch(small())
    monkeypatch.setattr(batch_size._Attempt, "_steps", fails_above(0, MemoryError()))
    with pytest.raises(ppxcls.TrainingError, match=r"not even a batch of 2 .*Arch\.recompute and AMP"):
        ppxcls.find_batch(small())


def test_a_host_is_never_asked_for_more_than_it_has(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs real steps with 300 MB of free memory."""
    asked: list[int] = []
    steps = batch_size._Attempt._steps

    def noted(self: Any, size: int) -> tuple[float, int]:
        asked.append(size)
        return steps(self, size)

    monkeypatch.setattr(batch_size._Attempt, "_steps", noted)
    monkeypatch.setattr(batch_size, "_free_host_bytes", lambda: 3e8)
    monkeypatch.setattr(batch_size, "_largest_size", lambda *_: (4096, "sizes above 4096 are not tried"))
    found = ppxcls.find_batch(small())
    assert found.largest == max(asked)
    assert found.measurements[-1][2] - found.measurements[0][2] < 6e8
    assert table(next(Path(small()).parent.rglob(build.BATCHES_FILE)))[-1]["batch_size"] == str(found.largest)


def test_the_smallest_fast_batch() -> None:
    found = BatchSizes([(2, 10.0, 1), (4, 19.5, 2), (8, 20.0, 3), (16, 19.9, 4)], "enough")
    assert (found.largest, found.smallest_fast) == (16, 4)
    assert "batch_size: 16 is the largest that fits (enough); 4 is the smallest" in str(found)


def test_fit_writes_what_it_has_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The searches are replaced by stubs. The test checks how their results are used."""
    files = sorted((write_images(tmp_path / "images", 30) / "train").iterdir())
    for i, file in enumerate(files):
        (tmp_path / f"photos/{i % 3}").mkdir(parents=True, exist_ok=True)
        file.rename(tmp_path / f"photos/{i % 3}/{file.name}")
    logs = np.linspace(-6, 0, 100)
    rates = RateRange(10**logs, 3 - 2 / (1 + np.exp(-4 * (logs + 3))) + np.exp(3 * logs))
    monkeypatch.setattr(photographs.tuning, "find_lr", lambda *_, **__: rates)
    monkeypatch.setattr(
        photographs.tuning, "find_batch", lambda *_, **__: BatchSizes([(2, 10.0, 1), (16, 99.0, 2)], "enough")
    )
    monkeypatch.setattr(photographs, "_MIN_STEPS_PER_EPOCH", 4)
    run = ppxcls.fit(
        tmp_path / "photos",
        None,
        network=None,
        minutes=0.01,
        output=tmp_path / "out",
        device=None,
        find_lr=True,
        find_batch=True,
        overrides=["Global.epochs=1"],
    )
    config = ppxcls.load_config(tmp_path / "out/train.yaml")
    assert config.Optimizer.lr.learning_rate == rates.suggestion
    assert config.DataLoader.Train.sampler.batch_size == 21 // 4
    text = (tmp_path / "out/train.yaml").read_text()
    assert f"# {rates}" in text
    assert "# batches of 5, after trying; 16 would fit" in text
    assert read_checkpoint(run / "latest")
