"""Shared fixtures: optional reference data, generated images, and the tools run as users run them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

import ppxcls
from ppxcls.config import plugins
from ppxcls.config.trust import read_code, record_trust
from tests import forks

os.environ["PPXCLS_OFFLINE"] = "1"  # no test fetches weights of real servers
ppxcls.load_config  # noqa: B018  imports Paddle after what must be set for it, whatever a test imports first

ROOT = Path(__file__).resolve().parents[1]
SMALL_NETWORK, BLOCK_NETWORK = (
    str(ROOT / f"tests/fixtures/{name}_network.py") for name in ("small", "block")
)
SHARED = Path(os.environ.get("PPXCLS_SHARED", ROOT.parent / "shared"))
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no reference data at {SHARED}")


def write_images(
    folder: Path, count: int, classes: int = 3, size: int = 80, seed: int = 0, name: str = "train"
) -> Path:
    """Writes PNG files and ``<name>_list.txt``, and returns the folder.

    The colour and the width of an image depend on its class.
    """
    rng = np.random.default_rng(seed)
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        label = i % classes
        image = rng.integers(0, 60, (size, size + label, 3)).astype(np.uint8)
        image[..., label % 3] += 120
        cv2.imwrite(str(folder / name / f"{i:04d}.png"), image)
        lines.append(f"{name}/{i:04d}.png {label}\n")
    (folder / f"{name}_list.txt").write_text("".join(lines))
    return folder


def small_config(data: Path, output: Path, **overrides: Any) -> dict[str, Any]:
    """Returns a config that briefly trains Xception41 on 71 px images on the CPU.

    Keys in dotted form override values.
    """
    normalize = {"NormalizeImage": {"scale": "1.0/255.0", "order": ""}}
    train_ops = [{"DecodeImage": {}}, {"RandCropImage": {"size": 71}}, {"RandFlipImage": {}}, normalize]
    eval_ops = [
        {"DecodeImage": {}},
        {"ResizeImage": {"resize_short": 75}},
        {"CropImage": {"size": 71}},
        normalize,
    ]

    def section(name: str, ops: list[Any], shuffle: bool) -> dict[str, Any]:
        dataset = {
            "name": "ImageNetDataset",
            "image_root": str(data),
            "cls_label_path": str(data / f"{name}_list.txt"),
        }
        return {
            "dataset": {**dataset, "transform_ops": ops},
            "sampler": {
                "name": "DistributedBatchSampler",
                "batch_size": 4,
                "drop_last": False,
                "shuffle": shuffle,
            },
            "loader": {"num_workers": 1},
        }

    config: dict[str, Any] = {
        "Global": {"device": "cpu", "output_dir": str(output), "epochs": 1, "print_batch_step": 1, "seed": 0},
        "Arch": {"name": "Xception41", "class_num": 3},
        "Loss": {
            "Train": [{"CELoss": {"weight": 1.0, "epsilon": 0.1}}],
            "Eval": [{"CELoss": {"weight": 1.0}}],
        },
        "Optimizer": {
            "name": "Momentum",
            "momentum": 0.9,
            "lr": {"name": "Cosine", "learning_rate": 0.02},
            "regularizer": {"name": "L2", "coeff": 0.0001},
        },
        "DataLoader": {"Train": section("train", train_ops, True), "Eval": section("val", eval_ops, False)},
        "Metric": {"Train": [{"TopkAcc": {"topk": [1, 2]}}], "Eval": [{"TopkAcc": {"topk": [1, 2]}}]},
    }
    for path, value in overrides.items():
        target: Any = config
        *parents, last = path.split(".")
        for key in parents:
            target = target[key]
        target[last] = value
    return config


@pytest.fixture(autouse=True, scope="session")
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's state folder for the tests and the commands that they run, in which this repository's plugins are trusted."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        names = (SMALL_NETWORK, BLOCK_NETWORK, ROOT / "tests/accelerator/separable_network.py")
        networks = [Path(name) for name in names]
        record_trust([read_code(file) for file in networks])
        yield folder


@pytest.fixture(autouse=True, scope="module")
def free_memory_returned() -> Iterator[None]:
    """Returns free memory to the system after each module.

    Training keeps the memory of its tensors for the next step, so a process that runs hundreds of trainings
    would grow to many gigabytes.
    """
    yield
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def forget_plugin(name: str) -> None:
    """Forgets the module of a plugin, so that it is imported anew."""
    del plugins._FINDER.modules[name]
    plugins._IMPORTED_NAMES.pop(name, None)
    sys.modules.pop(name, None)
    for file in [file for file, own_name in plugins._MODULE_NAMES.items() if own_name == name]:
        del plugins._MODULE_NAMES[file]


@pytest.fixture
def plugin_metrics_forgotten() -> Iterator[None]:
    """Forgets the metrics of a test's plugins with their modules, because other tests look at all metrics."""
    earlier_metrics = ppxcls.METRICS.components().keys()
    yield
    components = ppxcls.METRICS.components()
    metrics = {name: components[name] for name in components.keys() - earlier_metrics}
    ppxcls.METRICS.forget(set(metrics))
    for name in {metric.__module__ for metric in metrics.values()} & plugins.plugin_modules().keys():
        forget_plugin(name)


@pytest.fixture(autouse=True)
def removed_plugins_forgotten() -> None:
    """Forgets plugins of earlier tests whose files were removed with the tests' folders.

    A pickled predictor and loader processes take all plugins of a process with them, and look for the files.
    """
    for name, module in plugins.plugin_modules().items():
        if module.code is not None and not Path(module.code.path).exists():
            forget_plugin(name)
    for file in [file for file in plugins._MODULE_NAMES if not file.exists()]:
        del plugins._MODULE_NAMES[file]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training and 7 validation images of 3 classes."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 12)
    return write_images(folder, 7, seed=1, name="val")


@pytest.fixture
def write_config(tmp_path: Path, images: Path) -> Callable[..., Path]:
    """Writes ``small_config`` for the session's images, with overrides, and returns the file."""

    def write(**overrides: Any) -> Path:
        file = tmp_path / "config.yaml"
        file.write_text(
            yaml.safe_dump(small_config(images, tmp_path / "output", **overrides), sort_keys=False)
        )
        return file

    return write


def copy_folder(source: Path, target: Path) -> Path:
    """Copies a folder for a test that writes to it. Weights, which commands replace and never change, are linked."""

    def copy(file: str, new_file: str) -> None:
        is_replaced = Path(file).suffix in (".pdparams", ".pdopt", ".pdema", ".safetensors")
        (os.link if is_replaced else shutil.copy2)(file, new_file)

    shutil.copytree(source, target, copy_function=copy)
    return target


def run_python(
    words: Sequence[str | Path], folder: Path = ROOT, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """Runs ``python WORDS`` in a folder, in a process of its own or in a fork, see ``forks.run``."""
    words = [str(word) for word in words]
    return forks.run(words, folder, environment, seconds=280) or subprocess.run(
        [sys.executable, *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=280,
    )


def run_tool(
    *arguments: str | Path, processes: int = 1, is_own_process: bool = False, **kwargs: Any
) -> subprocess.CompletedProcess[str]:
    """Runs ``tools/*.py`` or a verb in a process, or in several under Paddle's launcher.

    The one process is a fork if nothing is against it, see ``forks.run``. Runs whose bits are compared, and
    those that may leave processes behind, need ``is_own_process``.
    """
    if not str(arguments[0]).endswith(".py"):
        arguments = ("-m", "ppxcls", *arguments)
    launch = []
    log_dir = kwargs.pop("log_dir", None)
    if processes > 1:
        launch = [
            "-m",
            "paddle.distributed.launch",
            "--nproc_per_node",
            str(processes),
            "--log_dir",
            str(log_dir),
        ]
    elif not kwargs and not is_own_process:
        return run_python(arguments)
    command = [sys.executable, *launch, *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=300, **kwargs
    )


def load_script(name: str) -> Any:
    """Imports a module of ``scripts/``, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look the module up here
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def new_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Returns a function that gives the log's warnings since its last call."""

    def texts() -> list[str]:
        messages = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        caplog.clear()
        return messages

    ppxcls.system.logs.logger.propagate = True
    yield texts
    ppxcls.system.logs.logger.propagate = False


@pytest.fixture
def small(write_config: Callable[..., Path]) -> Callable[..., Path]:
    """Returns ``write_config`` with a network of a few hundred weights. The network's module is imported."""

    def write(**keys: Any) -> Path:
        return write_config(**{"Arch": {"name": "SmallNetwork"}, "Global.plugins": [SMALL_NETWORK], **keys})

    ppxcls.load_config(write())  # imports the network's module, even if no other test did
    return write
