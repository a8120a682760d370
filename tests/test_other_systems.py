"""All verbs run without what Windows lacks: modules, functions, signals, and open files that can be replaced.

``fixtures/other_system`` hides them from the modules of this package.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import ppxcls
from ppxcls.checkpoints.files import read_state
from ppxcls.checkpoints.safe_states import PARAMETER_NAMES_KEY
from ppxcls.cli.verbs import VERBS
from ppxcls.models.weights import save_weights
from tests.conftest import ROOT, SMALL_NETWORK, write_images

RUN = "output/photos/SmallNetwork"
SITE = ROOT / "tests/fixtures/other_system"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the files that a process has open are in /proc"
)


def environment() -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONUTF8"},
        "PYTHONPATH": f"{SITE}{os.pathsep}{ROOT}",
        "PYTHONWARNDEFAULTENCODING": "1",
        "PYTHONIOENCODING": "cp1252",
    }


def typed(words: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ppxcls", *map(str, words)]
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        encoding="cp1252",
        cwd=folder,
        env=environment(),
        timeout=280,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos/`` of two classes, and the run of ``fit`` with both searches.

    The other verbs take the run's ``config.yaml``, which names the plugin of a small network.
    """
    folder = tmp_path_factory.mktemp("place")
    write_images(folder / "images", 24, classes=2)
    for i, file in enumerate(sorted((folder / "images/train").iterdir())):
        target = folder / "photos" / ("ant", "b\u00ea\u732b")[i % 2] / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    overrides = [
        f"Global.plugins=[{SMALL_NETWORK}]",
        "Arch={name: SmallNetwork, class_num: 2}",
        "Global.epochs=2",
    ]
    words: list[str | Path] = ["fit", "photos", "--minutes", "0.01", "--find-batch", "--find-lr"]
    result = typed([*words, *(word for text in overrides for word in ("-o", text))], folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_names_are_hidden(tmp_path: Path) -> None:
    """The fixture takes effect in the package's modules, and only there."""
    (tmp_path / "ppxcls_probe.py").write_text(
        "import os, signal\ntry:\n    import fcntl\nexcept ImportError:\n    print('no fcntl')\n"
        "print(hasattr(os, 'memfd_create'), hasattr(signal, 'SIGUSR1'))\n",
        encoding="utf-8",
    )
    code = "import os, ppxcls_probe; print(hasattr(os, 'memfd_create'))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert result.stdout.splitlines() == ["no fcntl", "False False", "True"], result.stderr


# Each row is one test. The later commands of a row read what the earlier ones wrote.
COMMANDS = [
    [
        ["train", "-c", RUN, "-o", "Global.output_dir=trained"],
        ["train", "-c", "trained/SmallNetwork", "-o", "Global.epochs=3", "-o", "Global.checkpoints=auto"],
        ["verify", "trained/SmallNetwork"],
        ["train", "-c", "trained/SmallNetwork"],
    ],
    [["eval", "-c", RUN]],
    [["tune", "--help"]],
    [
        ["train", "-c", RUN, "-o", "Global.output_dir=to_average", "-o", "Global.save_interval=1"],
        ["average", "to_average/SmallNetwork", "--last", "2"],
    ],
    [["infer", "-c", RUN, "photos", "--format", "csv", "--output", "answers.csv"]],
    [["report", RUN]],
    [["check", "-c", RUN, "--json", "check.json"]],
    [
        ["lists", "photos", "-o", "lists"],
        ["pack", "lists/train_list.txt", "--image-root", "photos", "-o", "packed"],
        ["pack", "lists/train_list.txt", "--image-root", "photos", "--verify", "packed"],
    ],
    [
        ["export", "-c", RUN, "--format", "paddle"],
        ["infer", "--exported", "inference", "photos"],
    ],
    [["doctor"]],
    [["list"]],
    [["weights"]],
    [["launch", "--help"]],
]
# Verbs with a test of their own in this file, and ``fit``, which makes the run of all tests.
OTHER_VERBS = {"fit", "serve", "convert"}


def test_no_verb_is_left_out() -> None:
    assert {words[0] for commands in COMMANDS for words in commands} | OTHER_VERBS == VERBS.keys()


@pytest.mark.parametrize("commands", COMMANDS, ids=lambda commands: commands[0][0])
def test_a_verb(commands: list[list[str]], place: Path) -> None:
    for words in commands:
        result = typed([*words], place)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "Traceback" not in result.stderr


def test_an_export_to_onnx(place: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    for words in (
        ["export", "-c", RUN, "--format", "onnx", "-o", "Global.save_inference_dir=onnx"],
        ["infer", "--exported", "onnx/inference.onnx", "photos"],
    ):
        result = typed([*words], place)
        assert result.returncode == 0, result.stdout + result.stderr


def test_a_conversion(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    save_weights(ppxcls.build_model("Xception41", class_num=2), tmp_path / "w.pdparams")
    for source, target in (("w.pdparams", "w.safetensors"), ("w.safetensors", "again.pdparams")):
        words = ["convert", source, "--model", "Xception41", "--class-num", "2", "-o", target]
        result = typed([*words], tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr
    states = [read_state(tmp_path / name) for name in ("again.pdparams", "w.pdparams")]
    arrays = [{key: value for key, value in state.items() if key != PARAMETER_NAMES_KEY} for state in states]
    assert arrays[0].keys() == arrays[1].keys()
    assert all((arrays[0][key] == arrays[1][key]).all() for key in arrays[0])


def test_names_of_classes_in_another_locale(place: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", "ppxcls", "lists", "photos", "-o", "lists_c"],
        check=False,
        capture_output=True,
        cwd=place,
        env={**os.environ, **locale},
    )
    assert result.returncode == 0, result.stderr
    text = (place / "lists_c/class_names.txt").read_text(encoding="utf-8")
    assert text == "0 ant\n1 b\u00ea\u732b\n"


def test_loader_processes_are_replaced_by_threads(place: Path) -> None:
    loader = "DataLoader.Train.loader={num_workers: 2, num_processes: 2}"
    words = ["train", "-c", RUN, "-o", "Global.epochs=1", "-o", loader]
    result = typed([*words, "-o", "Global.output_dir=processes"], place)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "images are loaded in threads of this process, because this system has no memory" in result.stdout


def test_a_launched_job(place: Path) -> None:
    words = ["launch", "--restarts", "0", "--nproc_per_node", "1", "train", "-c", RUN]
    result = typed([*words, "-o", "Global.epochs=1", "-o", "Global.output_dir=launched"], place)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (place / "launched/SmallNetwork/latest.json").exists()


def test_the_server(place: Path) -> None:
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    image = next((place / "photos/ant").iterdir()).read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-m", "ppxcls", "serve", RUN, "--port", str(port)],
        cwd=place,
        env=environment(),
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        encoding="cp1252",
    )
    deadline = time.monotonic() + 120
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/predict", data=image) as answer:
                    assert answer.status == 200
                    break
            except urllib.error.URLError:
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
    assert "Traceback" not in output
