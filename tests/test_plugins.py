"""A user's own components, in a file outside the package, in every tool."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppxcls
from ppxcls.config.checks import ConfigPlace
from ppxcls.config.registry import _REGISTRIES, Registry
from tests.conftest import ROOT, run_tool

PLUGIN = '''
"""One component of each kind."""

import json
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

import ppxcls


@ppxcls.MODELS.register
def TwoLayers(class_num: int = 3, width: int = 4) -> nn.Layer:
    """A network."""
    body = nn.Conv2D(3, width, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2D(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(width, class_num))


@ppxcls.TRANSFORMS.register
class Darken(ppxcls.Transform):
    """Halves some images."""

    needs_uint8 = True

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def __call__(self, image, rng):
        return image // 2 if rng.random() < self.share else image


@ppxcls.LR_SCHEDULES.register
def Halving(learning_rate: float, per_epoch: float):
    """Half the rate each epoch."""
    return lambda t: learning_rate * 0.5 ** (t // per_epoch)


@ppxcls.LOSSES.register
class Quadratic(ppxcls.Loss):
    """Squared distance from the one-hot label."""

    def __call__(self, logits, labels):
        return ((nn.functional.softmax(logits) - nn.functional.one_hot(labels, logits.shape[-1])) ** 2).sum(axis=-1).mean()


@ppxcls.METRICS.register
class Confidence(ppxcls.Metric):
    """Mean of the largest probability, and how many samples were seen."""

    names = ("confidence",)

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, logits, labels):
        self.seen += len(labels)
        return {"confidence": nn.functional.softmax(logits).max(axis=-1).sum()}

    def results(self):
        seen, self.seen = self.seen, 0
        return {"seen": float(seen)}


@ppxcls.OPTIMIZERS.register
def Slow(given, nesterov: bool = True):
    """Momentum under another name."""
    return paddle.optimizer.Momentum(**given.coupled(), momentum=0.5, use_nesterov=nesterov)


@ppxcls.TRACKERS.register
class Diary(ppxcls.Tracker):
    """One line a line."""

    def __init__(self, folder: Path, name: str = "diary.txt") -> None:
        self.file = folder / name

    def log(self, kind, place, figures):
        with open(self.file, "a") as stream:
            stream.write(f"{kind} {place['step']} {figures['loss']:.3f}\\n")


@ppxcls.SAMPLERS.register
class Backwards(ppxcls.DistributedBatchSampler):
    """The list from its end."""

    def order(self, epoch):
        return super().order(epoch)[::-1]


@ppxcls.BATCH_TRANSFORMS.register
class Mirrored:
    """Every image turned round, with soft labels."""

    def __init__(self, class_num: int) -> None:
        self.class_num = class_num

    def __call__(self, images, labels, rng):
        return images[:, :, :, ::-1], nn.functional.one_hot(labels, self.class_num)


@ppxcls.DATASETS.register
class ArrayDataset(ppxcls.Dataset):
    """Images that are made in memory."""

    def __init__(self, count: int, transform_ops: ppxcls.TransformOps | None = None, class_num: int | None = None) -> None:
        rng = np.random.default_rng(count)
        labels = np.arange(count) % 3
        self.images = rng.integers(0, 100, (count, 80, 80, 3)).astype(np.uint8)
        self.images[np.arange(count), :, :, labels] += 100
        super().__init__(labels, transform_ops, class_num)

    def read(self, index):
        return self.images[index]
'''
OWN = {
    "model": {"Arch": {"name": "TwoLayers", "class_num": 3, "width": 5}},
    "transform": {
        "DataLoader.Train.dataset.transform_ops": [
            {"DecodeImage": None},
            {"RandCropImage": {"size": 71}},
            {"Darken": {"share": 0.9}},
        ]
    },
    "loss": {"Loss": {"Train": [{"Quadratic": {"weight": 2.0}}], "Eval": [{"Quadratic": {}}]}},
    "metric": {"Metric": {"Train": [{"TopkAcc": {"topk": 1}}], "Eval": [{"Confidence": None}]}},
    "optimizer": {
        "Optimizer": {"name": "Slow", "nesterov": False, "lr": {"name": "ConstLR", "learning_rate": 0.01}}
    },
    "schedule": {"Optimizer.lr": {"name": "Halving", "learning_rate": 0.01}},
    "tracker": {"Global.trackers": [{"Diary": {"name": "mine.txt"}}]},
    "sampler": {"DataLoader.Train.sampler": {"name": "Backwards", "batch_size": 4}},
    "batch transform": {"DataLoader.Train.dataset.batch_transform_ops": [{"Mirrored": None}]},
    "dataset": {
        f"DataLoader.{mode}.dataset": {
            "name": "ArrayDataset",
            "count": count,
            "transform_ops": [{"NormalizeImage": {"order": ""}}],
        }
        for mode, count in (("Train", 12), ("Eval", 7))
    },
}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes the plugin's file. No test has imported it into this process."""
    file = tmp_path / "my_components.py"
    file.write_text(PLUGIN)
    return file


def own_config(write_config: Callable[..., Path], *kinds: str) -> Path:
    keys = {key: value for kind in kinds for key, value in OWN[kind].items()}
    return write_config(**{"Arch": OWN["model"]["Arch"], "Global.plugins": ["my_components"], **keys})


def figures(output: Path, name: str = "TwoLayers") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / name / "metrics.jsonl").read_text().splitlines()]


def test_each_kind_in_the_tools(write_config: Callable[..., Path], plugin: Path, tmp_path: Path) -> None:
    """All kinds except those of the next test.

    The plugin is next to the YAML, and the run's own config.yaml finds it too.
    """
    file = own_config(
        write_config,
        *OWN.keys() - {"optimizer", "schedule", "transform", "batch transform"},
        "optimizer",
        "schedule",
    )
    result = run_tool("tools/train.py", "--trust", "-c", file)
    assert result.returncode == 0, result.stderr
    assert "lr(Halving): 0.01" in result.stdout
    rows = figures(tmp_path / "output")
    assert {"Quadratic", "loss", "lr"} <= rows[0].keys()
    assert rows[-1]["seen"] == rows[-1]["num_samples"] == 7
    assert 1 / 3 <= rows[-1]["confidence"] <= 1
    diary = (tmp_path / "output/TwoLayers/mine.txt").read_text().splitlines()
    assert [line.split()[:2] for line in diary] == [[row["kind"], str(row["step"])] for row in rows]

    own = tmp_path / "output/TwoLayers/config.yaml"
    assert str(plugin) in own.read_text()
    result = run_tool("tools/eval.py", "-c", own)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "output/TwoLayers/eval.json").read_text())
    assert results["confidence"] == rows[-1]["confidence"]

    result = run_tool("check", "-c", own)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("ArrayDataset: samples 12, classes 3")
    assert "ArrayDataset (2): samples 7, classes 3" in result.stdout


def test_an_own_network_is_inferred_with_and_exported(
    write_config: Callable[..., Path], plugin: Path, tmp_path: Path, images: Path
) -> None:
    file = own_config(write_config, "model", "transform", "batch transform")
    assert run_tool("tools/train.py", "--trust", "-c", file).returncode == 0
    best = ["-o", f"Global.pretrained_model={tmp_path}/output/TwoLayers/best_model"]
    pictures = ["-o", f"Infer.infer_imgs={images}/val"]
    result = run_tool("tools/infer.py", "-c", file, *best, *pictures, "--format", "csv")
    assert result.returncode == 0, result.stderr
    predicted = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len({row["file_name"] for row in predicted}) == 7
    target = ["-o", f"Global.save_inference_dir={tmp_path}/exported"]
    result = run_tool("tools/export_model.py", "-c", file, *best, *pictures, *target, "--format", "paddle")
    assert result.returncode == 0, result.stderr
    exported = ["--exported", f"{tmp_path}/exported", "--format", "csv"]
    result = run_tool("tools/infer.py", "-c", file, *pictures, *exported)
    assert result.returncode == 0, result.stderr
    again = list(csv.DictReader(io.StringIO(result.stdout)))
    best_of = [
        {row["file_name"]: row["class_id"] for row in rows if row["rank"] == "1"}
        for rows in (predicted, again)
    ]
    assert best_of[0] == best_of[1]


@pytest.mark.parametrize("kind", OWN)
def test_each_kind_alone_in_a_notebook(
    kind: str, write_config: Callable[..., Path], plugin: Path, tmp_path: Path
) -> None:
    """The plugin is imported before the config is loaded, without ``Global.plugins``."""
    file = write_config(**{"Arch": OWN["model"]["Arch"], **OWN[kind]})
    script = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(plugin.parent)!r}]
import ppxcls
import my_components
trainer = ppxcls.build_trainer(ppxcls.load_config({str(file)!r}))
trainer.fit()
assert trainer.progress.step == 3
"""
    result = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            None,
            "expected the name of a Python module or the path of a "
            ".py file, received 'no_such_plugin', which does not exist",
        ),
        ("1 / 0", "the plugin 'no_such_plugin' can't be imported: ZeroDivisionError: division by zero"),
        (
            "import ppxcls\n@ppxcls.LOSSES.register\nclass CELoss(ppxcls.Loss):\n    pass",
            "can't be imported: TypeError: loss 'CELoss' is registered twice",
        ),
        (
            "import ppxcls\n@ppxcls.METRICS.register\nclass "
            "Bare:\n    def __call__(self, logits, labels): ...",
            "can't be imported: TypeError: metric Bare: no names, results; derive the class from Metric",
        ),
        (
            "import ppxcls\n@ppxcls.LOSSES.register\nclass "
            "Open(ppxcls.Loss):\n    def __init__(self, **more): ...",
            r"can't be imported: TypeError: loss Open: \*args and \*\*kwargs can't be checked",
        ),
    ],
)
def test_a_plugin_that_is_none(
    text: str | None, message: str, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "no_such_plugin.py").write_text(text)
    with pytest.raises(ppxcls.ConfigError, match=r"config.yaml:\d+: Global.plugins.0: .*" + message):
        ppxcls.load_config(write_config(**{"Global.plugins": ["no_such_plugin"]}), trust=True)
    assert "no_such_plugin" not in sys.modules


def test_a_class_of_its_own_may_lack_optional_members() -> None:
    """Members that were added to a base class later have the base's value."""
    registry: Registry[Any] = Registry("pretended", base=ppxcls.Tracker, optional_members=("files",))
    members = {name: lambda self: None for name in ("start", "log", "flush", "close")}
    tracker = registry.register(type("Duck", (), members))
    assert tracker.files == ()

    class Other:
        start = log = flush = close = None

    def function() -> Any:
        return Other()

    registry.register(function)
    block = registry.block({"name": "function"}, ConfigPlace(("pretended",)))
    assert registry.build(block).files == ()
    del _REGISTRIES["pretended"]


def test_a_plugin_is_found_again_and_can_be_repaired(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "helper_of_mine.py").write_text("RATE = 0.25\n")
    text = (
        "import ppxcls\nfrom helper_of_mine import RATE\n\n\n@ppxcls.LR_SCHEDULES.register\n"
        'def Quarter() -> object:\n    """A rate."""\n    return lambda t: RATE\n'
    )
    (tmp_path / "my_schedule.py").write_text(text + "\nraise SystemExit(3)\n")
    file = write_config(**{"Global.plugins": ["my_schedule"], "Optimizer.lr": {"name": "Quarter"}})
    with pytest.raises(ppxcls.ConfigError, match="the plugin 'my_schedule' can't be imported: SystemExit: 3"):
        ppxcls.load_config(file, trust=True)
    (tmp_path / "my_schedule.py").write_text(text)
    for _ in range(2):
        config = ppxcls.load_config(file, trust=True)
        assert config.Global.plugins == [str(tmp_path / "my_schedule.py")]
    assert ppxcls.build_lr_schedule(config.Optimizer.lr, 1, steps_per_epoch=1)(0) == 0.25
    (tmp_path / "other").mkdir()
    (tmp_path / "other/my_schedule.py").write_text(text)
    other = tmp_path / "other/config.yaml"
    other.write_text(file.read_text())
    with pytest.raises(ppxcls.ConfigError, match="another module named 'my_schedule' is loaded already"):
        ppxcls.load_config(other, trust=True)


def test_a_function_must_return_what_the_program_uses(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "bare_loss.py").write_text(
        "import ppxcls\n\n\n@ppxcls.LOSSES.register\ndef BareLoss() -> object:\n"
        '    """No class."""\n    return lambda logits, labels: logits.mean()\n'
    )
    config = ppxcls.load_config(
        write_config(**{"Global.plugins": ["bare_loss"], "Loss.Train": [{"BareLoss": {}}]}), trust=True
    )
    with pytest.raises(
        ppxcls.ConfigError, match=r"Loss.Train.0.BareLoss: .*without needs_soft_labels; derive its class from"
    ):
        ppxcls.build_trainer(config)


def test_an_unknown_name_without_the_plugin(write_config: Callable[..., Path]) -> None:
    with pytest.raises(ppxcls.ConfigError, match="Arch.name: unknown model 'TwoLayerss'"):
        ppxcls.load_config(write_config(**{"Arch": {"name": "TwoLayerss"}}))


def test_a_data_set_says_what_is_wrong_with_its_labels() -> None:
    class Arrays(ppxcls.Dataset):
        def read(self, index: int) -> np.ndarray:
            raise ValueError("it is black")

    with pytest.raises(
        ppxcls.DataError, match="Arrays:3: the label 5 is outside class_num = 5, labels 0 to 4"
    ):
        Arrays([0, 1, 5], class_num=5)
    with pytest.raises(ppxcls.DataError, match="Arrays:1: the label -1 is outside"):
        Arrays([-1, 1], class_num=5)
    with pytest.raises(ppxcls.DataError, match="Arrays: the data set has no samples"):
        Arrays([])
    with pytest.raises(ppxcls.DataError, match=r"1 \(Arrays:2\): it is black"):
        Arrays([0, 1]).load(1)
    with pytest.raises(ppxcls.DataError, match="Arrays: expected integer labels"):
        Arrays([0.5, 1.7])
    assert Arrays([0, 1]).digest() != Arrays([1, 0]).digest()
