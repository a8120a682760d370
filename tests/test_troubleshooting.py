"""Does what ``docs/troubleshooting.md`` says, row by row.

Each case causes the message of its row by a real command, does what the page advises, and checks that this
ends as promised. What can't be caused on this machine (a GPU, several hosts) is as near to it as possible:
the function that makes the message runs, and the case says so in ``NEAR``.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle
import pytest
import yaml

import ppxcls
from ppxcls import cli
from ppxcls.checkpoints import files
from ppxcls.cli import verbs
from ppxcls.system import devices, supervisor
from tests.conftest import ROOT, SMALL_NETWORK, run_tool, small_config, write_images

PAGE = ROOT / "docs/troubleshooting.md"
SMALL = {"Arch": {"name": "SmallNetwork"}, "Global.plugins": [SMALL_NETWORK]}


@dataclass
class Result:
    """Outcome of a command: exit code, and its output of both streams."""

    code: int
    text: str
    errors: str


class Desk:
    """What a user has: images, a YAML, and the command line. The commands run in this process."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.capfd = capfd
        self.data = write_images(folder / "data", 12)
        write_images(self.data, 7, seed=1, name="val")
        self.run = folder / "output/SmallNetwork"
        monkeypatch.chdir(folder)

    def config(self, **keys: Any) -> str:
        content = small_config(self.data, self.folder / "output", **{**SMALL, **keys})
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return str(file)

    def command(self, *words: str | Path) -> Result:
        def leave(message: str, code: int) -> None:
            print(message, file=sys.stderr)
            raise SystemExit(code)

        code: Any = 0
        with self.monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["ppxcls", *map(str, words)])
            patch.setattr(cli, "_exit", leave)
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            try:
                verbs.main()
            except SystemExit as end:
                code = end.code or 0
        out, errors = self.capfd.readouterr()
        return Result(int(code), out + errors, errors)

    def fails(self, *words: str | Path, code: int = 1) -> str:
        """Runs a command that must fail with this exit code. Returns its last line, which is the message."""
        result = self.command(*words)
        assert result.code == code, result.text
        assert "Traceback" not in result.text
        return result.errors.strip().splitlines()[-1]

    def works(self, *words: str | Path) -> str:
        """Runs a command that must succeed. Returns its output."""
        result = self.command(*words)
        assert result.code == 0, result.text
        return result.text


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, monkeypatch, capfd)


Case = Callable[[Desk], None]
CASES: dict[str, Case] = {}
SLOW: set[str] = set()
# Rows that can't be caused on this machine, and what stands for them.
NEAR = {
    "this Paddle has no kernels for": "the function that makes the message, with another card's name",
    "Paddle transposes the input of each batch norm": "the start of a job, which is told that it has a GPU",
    "expected 'NCHW' with Global.deterministic": "a config for a GPU, which is checked before the device",
    "gradients were not finite in": "a loss scaler that skips, because Paddle turns its own off on a CPU",
    "out of memory": "an error of a network that has the words of Paddle's",
    "this host's name resolves to": "the function that makes the message, with another name of the host",
    "differs from the network by": "a format whose result is changed by a thousandth",
}


def case(phrase: str, *, is_slow: bool = False) -> Callable[[Case], Case]:
    """Registers the case of the row whose first cell contains this phrase."""

    def register(function: Case) -> Case:
        CASES[phrase] = function
        if is_slow:
            SLOW.add(phrase)
        return function

    return register


def rows() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")
    ]
    return [row for row in cells if row[0] != "message" and not row[0].startswith("---")]


def row_text(row: list[str]) -> str:
    return row[0].replace("`", "")


def test_every_row_of_the_page_has_its_case() -> None:
    texts = [row_text(row) for row in rows()]
    assert len(texts) > 35
    assert [text for text in texts if not any(phrase in text for phrase in CASES)] == []
    assert [phrase for phrase in CASES if not any(phrase in text for text in texts)] == []
    assert NEAR.keys() <= CASES.keys()


def phrases() -> list[Any]:
    return [
        pytest.param(phrase, marks=pytest.mark.slow if phrase in SLOW else ()) for phrase in sorted(CASES)
    ]


# --- Before anything is built


@case("an unknown key, with did you mean")
def unknown_key(desk: Desk) -> None:
    file = desk.config()
    message = desk.fails("train", "-c", file, "-o", "Global.epoch=1", code=2)
    assert "unknown key 'epoch' (did you mean 'epochs'?)" in message
    desk.works("check", "-c", file, "-o", "Global.epochs=1")
    message = desk.fails("check", "-c", file, "-o", "AMP.use_pure_fp16=True", code=2)
    assert message.endswith("instead: AMP.level: O2")
    desk.works("check", "-c", file, "-o", "AMP.level=O2")


@case("expected …, received …, with a line of the YAML")
def wrong_value(desk: Desk) -> None:
    file = Path(desk.config())
    text = file.read_text()
    file.write_text(text.replace("resize_short: 75", "resize_short: many"))
    message = desk.fails("eval", "-c", file, code=2)
    found = re.search(r"config.yaml:(\d+): (\S+): expected (.*), received 'many'", message)
    assert found
    assert "resize_short: many" in file.read_text().splitlines()[int(found[1]) - 1]
    reference = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    assert f"| `resize_short` | {found[3]}" in reference
    file.write_text(text)
    desk.works("check", "-c", file)


@case("the plugin … can't be imported, expected the name of a Python module")
def plugin(desk: Desk) -> None:
    file = desk.config(**{"Global.plugins": [SMALL_NETWORK, "mine_of_this_page.py"]})
    message = desk.fails("check", "-c", file, code=2)
    assert "expected the name of a Python module or the path of a .py file" in message
    (desk.folder / "mine_of_this_page.py").write_text("import no_such_module_at_all\n")
    assert "No module named 'no_such_module_at_all'" in desk.fails("check", "-c", file, code=2)
    (desk.folder / "mine_of_this_page.py").write_text("import ppxcls\n")
    desk.monkeypatch.chdir("/")  # relative to the YAML, not to the current folder
    desk.works("check", "-c", file)


@case("to run on …: -o Global.device=")
def no_such_device(desk: Desk) -> None:
    file = desk.config(**{"Global.device": "npu"})
    message = desk.fails("train", "-c", file, code=2)
    advice = re.search(r"to run on (\w+): -o (Global.device=\w+)$", message)
    assert advice
    desk.works("train", "-c", file, "-o", advice[2])


@case("this Paddle has no kernels for")
def no_kernels(desk: Desk) -> None:
    desk.monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda number: "a new card")
    desk.monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda number: (12, 1))
    message = devices.missing_kernels_message("gpu:0")
    assert message.startswith("this Paddle has no kernels for a new card (12.1); install a build for CUDA 12")
    assert "## NVIDIA: builds and cards" in (ROOT / "docs/installation.md").read_text(encoding="utf-8")


@case("expected 'NCHW' with Global.deterministic")
def deterministic_layout(desk: Desk) -> None:
    network = {"name": "SmallNetwork", "data_format": "NHWC"}
    file = desk.config(Arch=network, **{"Global.deterministic": True, "Global.device": "gpu"})
    message = desk.fails("train", "-c", file, code=2)
    assert "Arch.data_format: expected 'NCHW' with Global.deterministic, received 'NHWC'" in message
    desk.works("train", "-c", file, "-o", "Arch.data_format=NCHW", "-o", "Global.device=cpu")


@case("Paddle transposes the input of each batch norm")
def layout_warning(desk: Desk) -> None:
    from ppxcls.build.start import start_job

    desk.monkeypatch.setattr("ppxcls.system.distributed.start", lambda device, **keys: None)
    desk.monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    config = ppxcls.load_config(desk.config(Arch={"name": "SmallNetwork", "data_format": "NHWC"}))
    start_job(config)
    log = (config.run_folder / "train.log").read_text()
    script = re.search(r"measure it against NCHW with (\S+\.py)", log)
    assert script
    assert (ROOT / script[1]).is_file()
    assert "## On your GPUs" in (ROOT / "docs/measurements.md").read_text(encoding="utf-8")


def fresh_process(desk: Desk, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own, which first imports a module named ``sitecustomize``."""
    folder = desk.folder / "site"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(module)
    return run_tool(*words, env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"})


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@case("ppxcls needs PaddlePaddle, which is not installed")
def no_paddle(desk: Desk) -> None:
    hidden = "import importlib.util as u\nreal = u.find_spec\n"
    hidden += "u.find_spec = lambda name, *a: None if name == 'paddle' else real(name, *a)\n"
    result = fresh_process(desk, hidden, "list")
    assert result.returncode == 1
    assert result.stderr.startswith("ppxcls needs PaddlePaddle, which is not installed")
    assert result.stderr.count("\n") == 1
    assert run_tool("list").returncode == 0


@case("PaddlePaddle is installed and can't be imported")
def broken_paddle(desk: Desk) -> None:
    module = desk.folder / "site/paddle/__init__.py"
    module.parent.mkdir(parents=True)
    module.write_text("raise ImportError('libcuda.so.1: cannot open shared object file')\n")
    result = fresh_process(desk, "", "list")
    assert result.returncode == 1
    reason = "ImportError: libcuda.so.1: cannot open shared object file"
    assert result.stderr == f"PaddlePaddle is installed and can't be imported: {reason}\n"
    assert reason in fresh_process(desk, "", "doctor").stdout


@case("contradicts Global.device")
def switch(desk: Desk) -> None:
    file = desk.config(**{"Global.use_gpu": True})
    message = desk.fails("check", "-c", file, code=2)
    assert "Global.use_gpu: true contradicts Global.device, 'cpu'; remove one of them" in message
    desk.works("train", "-c", desk.config())


@case("gives images with")
def channels(desk: Desk) -> None:
    file = desk.config(Arch={"name": "Xception41", "class_num": 3, "in_channels": 1})
    assert "Arch.in_channels: expected 3, because" in desk.fails("check", "-c", file, code=2)
    desk.works("check", "-c", desk.config(Arch={"name": "Xception41", "class_num": 3}))


# --- Data


@case("listed files are missing, no such list file")
def missing_files(desk: Desk) -> None:
    file = desk.config()
    name = "DataLoader.Train.dataset.cls_label_path"
    assert "no such list file" in desk.fails("train", "-c", file, "-o", f"{name}=none.txt")
    root = "DataLoader.Train.dataset.image_root=/tmp"
    message = desk.fails("train", "-c", file, "-o", root, "-o", "Global.check_data=True")
    assert "12 of 12 listed files are missing" in message
    for number in (3, 5):
        (desk.data / f"train/000{number}.png").unlink()
    report = desk.command("check", "-c", file)
    assert report.code == 1
    assert all(f"train/000{number}.png" in report.text for number in (3, 5))
    write_images(desk.data, 12)
    desk.works("check", "-c", file)


def damage(desk: Desk, *numbers: int) -> None:
    for number in numbers:
        file = desk.data / f"train/{number:04d}.png"
        file.write_bytes(b"\x89PNG damaged")


@case("truncated JPEG, not an image, or damaged beyond decoding")
def damaged_image(desk: Desk) -> None:
    damage(desk, 4)
    file = desk.config()
    message = desk.fails("train", "-c", file)
    assert "train/0004.png" in message
    assert "damaged beyond decoding" in message
    # A list of 12 may have one bad sample if the share says so.
    text = desk.works("train", "-c", file, "-o", "Global.on_bad_image=skip", "-o", "Global.max_bad_share=0.1")
    assert "left out: " in text
    assert "train/0004.png" in (desk.run / "bad_samples.txt").read_text()
    write_images(desk.data, 12)
    desk.works("train", "-c", file)


@case("can't be read, more than Global.max_bad_share")
def many_damaged_images(desk: Desk) -> None:
    damage(desk, 1, 4, 6)
    file = desk.config(**{"Global.on_bad_image": "skip"})
    message = desk.fails("train", "-c", file, "-o", "Global.max_bad_share=0.1")
    assert "can't be read, more than Global.max_bad_share = 0.1: see " in message
    assert "train/0004.png" in desk.command("check", "-c", file).text
    desk.works("train", "-c", file, "-o", "Global.max_bad_share=0.3")


@case("the label … is outside")
def label_outside(desk: Desk) -> None:
    file = desk.config()
    message = desk.fails("train", "-c", file, "-o", "Arch.class_num=2")
    assert "the label 2 is outside" in message
    desk.works("train", "-c", file, "-o", "Arch.class_num=3")
    lists = [desk.data / f"{name}_list.txt" for name in ("train", "val")]
    for path in lists:  # labels that start at 1
        path.write_text(re.sub(r"(\d)$", lambda m: str(int(m[1]) + 1), path.read_text(), flags=re.M))
    assert "the label 3 is outside" in desk.fails("train", "-c", file)


@case("but the labels of … end at")
def unused_classes(desk: Desk) -> None:
    text = desk.works("train", "-c", desk.config(), "-o", "Arch.class_num=5")
    assert re.search(r"Arch.class_num is 5, but the labels of .* end at 2: expected 3\?", text)
    assert "end at" not in desk.works("train", "-c", desk.config(), "-o", "Arch.class_num=3")


@case("is chance for")
def chance(desk: Desk) -> None:
    text = "".join(f"val/0000.png {i % 3}\n" for i in range(60))
    (desk.data / "val_list.txt").write_text(text)
    ppxcls.load_config(desk.config())
    weights = desk.folder / "w.pdparams"
    paddle.save(ppxcls.build_model("SmallNetwork").state_dict(), str(weights))
    file = desk.config(**{"Global.pretrained_model": str(weights)})
    assert "top1 0.3333 is chance for 3 classes" in desk.works("eval", "-c", file)


@case("the images of a batch differ in size")
def sizes(desk: Desk) -> None:
    file = desk.config()
    ops = "DataLoader.Train.dataset.transform_ops"
    message = desk.fails(
        "train", "-c", file, "-o", f"{ops}=[DecodeImage, {{ResizeImage: {{resize_short: 40}}}}]"
    )
    assert "the images of a batch differ in size" in message
    for right in ("RandCropImage: {size: 40}", "ResizeImage: {resize_short: 44}}, {CropImage: {size: 40}"):
        desk.works(
            "train", "-c", file, "-o", f"{ops}=[DecodeImage, {{{right}}}, {{NormalizeImage: {{order: ''}}}}]"
        )


# --- Weights and checkpoints


@case("does not fit the model")
def other_network(desk: Desk) -> None:
    weights = desk.folder / "w.pdparams"
    paddle.save(ppxcls.build_model("Xception41", class_num=3).state_dict(), str(weights))
    message = desk.fails("eval", "-c", desk.config(), "-o", f"Global.pretrained_model={weights}")
    assert "does not fit the model" in message
    assert "Xception41" in desk.works("list").split()
    desk.works(
        "eval",
        "-c",
        desk.config(Arch={"name": "Xception41", "class_num": 3}),
        "-o",
        f"Global.pretrained_model={weights}",
    )


@case("the classifier starts with fresh weights, because its size differs")
def fresh_classifier(desk: Desk) -> None:
    desk.works("train", "-c", desk.config())
    elsewhere = f"Global.output_dir={desk.folder}/finetuned"
    weights = f"Global.pretrained_model={desk.run}/latest"
    words = ("train", "-c", desk.config(), "-o", elsewhere, "-o", weights)
    text = desk.works(*words, "-o", "Arch.class_num=4")
    assert "the classifier starts with fresh weights, because its size differs" in text
    assert "the classifier starts" not in desk.works(*words)


@case("refused, not a file of weights")
def pickle(desk: Desk) -> None:
    import pickle as python_pickle

    ppxcls.load_config(desk.config())
    state = {key: value.numpy() for key, value in ppxcls.build_model("SmallNetwork").state_dict().items()}
    weights = desk.folder / "w.pdparams"
    weights.write_bytes(python_pickle.dumps({**state, "folder": Path("x")}, protocol=2))
    assert "refused, not a file of weights" in desk.fails(
        "train", "-c", desk.config(), "-o", f"Global.pretrained_model={weights}"
    )
    numpy_format = pytest.importorskip("safetensors.numpy")
    numpy_format.save_file(state, str(weights.with_suffix(".safetensors")))
    desk.works(
        "train", "-c", desk.config(), "-o", f"Global.pretrained_model={weights.with_suffix('.safetensors')}"
    )


@case("refused: …; trying the next older checkpoint")
def damaged_checkpoint(desk: Desk) -> None:
    file = desk.config(**{"Global.epochs": 2})
    desk.works("train", "-c", file)
    newest = desk.run / "latest.pdparams"
    newest.write_bytes(newest.read_bytes()[:-9])
    text = desk.works(
        "train",
        "-c",
        file,
        "-o",
        "Global.checkpoints=auto",
        "-o",
        "Global.epochs=3",
        "-o",
        "Global.allow_changes=True",
    )
    assert re.search(r"refused: .*latest.*; trying the next older checkpoint", text)
    assert "[Train][Epoch 3/3]" in text


@case("the checkpoint can't be resumed because of changes")
def changed_run(desk: Desk) -> None:
    desk.works("train", "-c", desk.config())
    words = ("train", "-c", desk.config(), "-o", "Global.checkpoints=auto", "-o", "Global.epochs=2")
    message = desk.fails(*words, "-o", "Global.seed=5")
    assert "the checkpoint can't be resumed because of changes: " in message
    desk.works(*words, "-o", "Global.seed=5", "-o", "Global.allow_changes=True")
    desk.works(*words, "-o", "Global.epochs=3", "-o", "Global.allow_changes=True", "-o", "Global.seed=0")


@case("another run writes there")
def second_run(desk: Desk) -> None:
    trainer = ppxcls.build_trainer(ppxcls.load_config(desk.config()))
    result = run_tool("train", "-c", desk.config())
    assert result.returncode == 1
    assert "another run writes there" in result.stderr
    if fuser := shutil.which("fuser"):
        found = subprocess.run(
            [fuser, str(desk.run / "run.lock")], check=False, capture_output=True, text=True
        )
        assert str(os.getpid()) in found.stdout.split()
    trainer.fit()
    desk.works("train", "-c", desk.config())


@case("can't save the checkpoint")
def full_disk(desk: Desk) -> None:
    file = desk.config(**{"Global.epochs": 2, "Global.eval_during_train": False})
    desk.works("train", "-c", file, "-o", "Global.epochs=1")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with desk.monkeypatch.context() as patch:
        patch.setattr(files, "_write_new", full)
        message = desk.fails("train", "-c", file, "-o", "Global.checkpoints=auto")
    assert "can't save the checkpoint: No space left on device: " in message
    assert "[Train][Epoch 2/2]" in desk.works("train", "-c", file, "-o", "Global.checkpoints=auto")


# --- Training


@case("the loss is not finite, a gradient was not finite")
def loss_not_finite(desk: Desk) -> None:
    file = desk.config(**{"Global.epochs": 3})
    message = desk.fails("train", "-c", file, "-o", "Optimizer.lr.learning_rate=1e30")
    assert "the loss is not finite: " in message
    assert re.search(r"epoch \d+, iteration \d+", message)
    assert "last files read: " in message
    # Random images have nothing to learn, so the range test may find that no rate helps.
    suggestion = re.search(r"learning rate: (\S+) is suggested", desk.works("train", "-c", file, "--find-lr"))
    rate = suggestion[1] if suggestion else "0.001"
    assert "[Train][Epoch 3/3]" in desk.works("train", "-c", file, "-o", f"Optimizer.lr.learning_rate={rate}")


@case("gradients were not finite in")
def skipped_steps(desk: Desk) -> None:
    from tests.train.test_training import RecordingScaler

    class Skipping(RecordingScaler):
        _cache_found_inf: Any = None

        def step(self, optimizer: Any) -> None:
            self.calls.append("step")
            self._cache_found_inf = paddle.to_tensor(data=True)

    amp = {"scale_loss": 128.0, "use_dynamic_loss_scaling": True, "max_skipped_steps": 1}
    trainer = ppxcls.build_trainer(ppxcls.load_config(desk.config(AMP=amp)))
    trainer.learner.precision.scaler = Skipping()
    with pytest.raises(ppxcls.TrainingError, match="gradients were not finite in 2 steps in a row"):
        trainer.fit()
    for advice in ("Optimizer.lr.learning_rate=0.001", "AMP.level=O1", "AMP.dtype=bfloat16"):
        desk.works("train", "-c", desk.config(AMP=amp), "-o", advice)


@case("the loss diverges")
def loss_diverges(desk: Desk) -> None:
    file = desk.config(**{"Global.epochs": 15, "Global.eval_during_train": False})
    text = desk.works(
        "train", "-c", file, "-o", "Optimizer.lr={name: Piecewise, decay_epochs: [6], values: [0.001, 100]}"
    )
    assert "the loss diverges: " in text
    assert "the loss diverges: " not in desk.works("train", "-c", file)


@case("no progress for … s at")
def hang(desk: Desk) -> None:
    fifo = desk.data / "train/0007.png"
    fifo.unlink()
    os.mkfifo(fifo)
    file = desk.config(**{"Global.hang_timeout": 2})
    result = run_tool("train", "-c", file, "-o", "DataLoader.Train.loader.num_workers=0")
    assert result.returncode != 0
    assert "no progress for " in result.stderr
    assert "0007.png" in result.stderr
    fifo.unlink()
    write_images(desk.data, 12)
    desk.works("train", "-c", file)


@case("the … of rank … differs from that of rank 0", is_slow=True)
def other_rank(desk: Desk) -> None:
    from tests.test_faults import by_hand

    def codes(*own: tuple[str, ...]) -> list[tuple[int, str]]:
        with socket.create_server(("", 0)) as server:
            port = server.getsockname()[1]
        return by_hand(Path(desk.config()), port, *own)

    same, other = "Global.epochs=1", "Optimizer.lr.learning_rate=0.5"
    for code, errors in codes((same,), (same, other)):
        assert (code, errors.strip().endswith("the config of rank 1 differs from that of rank 0")) == (
            1,
            True,
        )
    assert [code for code, _ in codes((same,), (same,))] == [0, 0]


@case("this host's name resolves to")
def host_name(desk: Desk) -> None:
    desk.monkeypatch.setattr(supervisor.socket, "gethostbyname", lambda name: "127.0.1.1")
    words = ["--nnodes", "2", "--master", "10.0.0.1:49178"]
    problem = supervisor.host_problem(words)
    assert problem is not None
    assert problem.startswith("this host's name resolves to 127.0.1.1, so the other nodes can't reach it")
    assert "add --host" in problem
    assert supervisor.host_problem([*words, "--host", "10.0.0.2"]) is None


@case("out of memory")
def out_of_memory(desk: Desk) -> None:
    plugin = desk.folder / "large_network.py"
    plugin.write_text(
        "import ppxcls\nfrom paddle import nn\n\n\n"
        "class Large(nn.Layer):\n    def __init__(self, class_num):\n        super().__init__()\n"
        "        self.fc = nn.Linear(3, class_num)\n\n"
        "    def forward(self, images):\n        if len(images) > 2:\n"
        "            raise RuntimeError('ResourceExhaustedError: Out of memory error on GPU 0.')\n"
        "        return self.fc(images.mean(axis=[2, 3]))\n\n\n"
        "@ppxcls.MODELS.register\ndef LargeNetwork(class_num: int = 3) -> nn.Layer:\n"
        '    """A network that fits only small batches."""\n    return Large(class_num)\n'
    )
    names = ppxcls.MODELS.registered()
    file = desk.config(Arch={"name": "LargeNetwork"}, **{"Global.plugins": [str(plugin)]})
    try:
        message = desk.fails("train", "-c", file)
        assert "out of memory: " in message
        assert "--find-batch" in message
        assert "2 is the largest that fits" in desk.works("train", "-c", file, "--find-batch")
        small_batch = "DataLoader.Train.sampler.batch_size=2"
        desk.works(
            "train",
            "-c",
            file,
            "-o",
            small_batch,
            "-o",
            "DataLoader.Eval.sampler.batch_size=2",
            "-o",
            "Global.samples_per_step=4",
        )
    finally:
        ppxcls.MODELS.forget(ppxcls.MODELS.registered() - names)


@case("it is slow")
def slow(desk: Desk) -> None:
    text = desk.works("train", "-c", desk.config())
    assert re.search(r"batch_cost: [\d.]+s, reader_cost: [\d.]+s", text)
    desk.works("train", "-c", desk.config(), "-o", "DataLoader.Train.loader.num_workers=2")
    measurements = (ROOT / "docs/measurements.md").read_text(encoding="utf-8")
    assert "## How the speed is reached" in measurements


@case("a report needs, the report can't be written")
def no_report(desk: Desk) -> None:
    with desk.monkeypatch.context() as patch:
        patch.setitem(sys.modules, "jinja2", None)
        text = desk.works("train", "-c", desk.config())
    assert re.search(r"a report needs jinja2, .*: pip install 'ppxcls\[report\]'", text)
    assert not (desk.run / "report.html").exists()
    desk.works("report", desk.run)
    assert (desk.run / "report.html").is_file()


# --- After training


@case("evaluation transforms against")
def other_preparation(desk: Desk) -> None:
    weights = desk.folder / "w.pdparams"
    network = {"name": "legacy_xception", "class_num": 3}
    paddle.save(ppxcls.build_model("legacy_xception", class_num=3).state_dict(), str(weights))
    file = desk.config(Arch=network, **{"Global.pretrained_model": str(weights)})
    text = desk.works("eval", "-c", file)
    differences = re.findall(r"evaluation transforms against .*: (.*)", text)
    assert differences
    ops = (
        "[DecodeImage, {ResizeImage: {resize_short: 333, interpolation: bicubic, backend: pil}}, {CropImage: {size: 299}}, "
        "{NormalizeImage: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], order: ''}}]"
    )
    text = desk.works("eval", "-c", file, "-o", f"DataLoader.Eval.dataset.transform_ops={ops}")
    assert "evaluation transforms against" not in text


@case("no best_model, because no evaluation has chosen one")
def no_best_model(desk: Desk) -> None:
    file = desk.config()
    desk.works("train", "-c", file, "-o", "Global.eval_during_train=False")
    assert "no best_model, because no evaluation has chosen one; latest is used" in desk.works(
        "eval", "-c", desk.run
    )
    desk.works("train", "-c", file)
    assert "no best_model" not in desk.works("eval", "-c", desk.run)


@case("writing ONNX needs")
def no_onnx_writer(desk: Desk) -> None:
    desk.works("train", "-c", desk.config())
    with desk.monkeypatch.context() as patch:
        for module in ("paddle2onnx", "onnx"):
            patch.setitem(sys.modules, module, None)
        message = desk.fails("export", "-c", desk.run, "--format", "onnx")
        assert "writing ONNX needs" in message
        desk.works("export", "-c", desk.run, "--format", "paddle")
    assert list((desk.folder / "inference").glob("inference.*"))


@case("differs from the network by")
def wrong_export(desk: Desk) -> None:
    from ppxcls.deploy import export

    desk.works("train", "-c", desk.config())
    original = export.np.concatenate
    with desk.monkeypatch.context() as patch:
        patch.setattr(export, "_TOLERANCE", -1.0)
        message = desk.fails("export", "-c", desk.run, "--format", "paddle")
    assert "differs from the network by" in message
    assert export.np.concatenate is original
    desk.works("export", "-c", desk.run, "--format", "paddle")


@case("is taken by another program")
def taken_port(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        message = desk.fails("serve", "none", "--port", str(server.getsockname()[1]))
        assert "is taken by another program" in message
        # With a free port, the next error is that of the model, which does not exist.
        assert "is taken" not in desk.fails("serve", "none", "--port", "0", code=2)


@case("is not an address of this machine")
def other_address(desk: Desk) -> None:
    assert "is not an address of this machine" in desk.fails("serve", "none", "--host", "192.0.2.1")
    for host in ("127.0.0.1", "0.0.0.0"):
        words = ("serve", "none", "--host", host, "--port", "0")
        assert "is not an address" not in desk.fails(*words, code=2)


@case("a status 400, 413, 415 or 422 from the server")
def refused_request(desk: Desk) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    pytest.importorskip("httpx")
    from ppxcls.serving.app import build_app

    desk.works("train", "-c", desk.config())
    image = (desk.data / "val/0000.png").read_bytes()
    with testclient.TestClient(build_app(ppxcls.load(desk.run))) as client:
        answer = client.post("/predict", content=b"no image")
        assert answer.status_code == 422
        assert "curl --data-binary @image.jpg" in answer.json()["error"]
        assert client.post("/predict", content=image).status_code == 200
        answer = client.post("/predict", data={"file": "x"}, files={"other": b""})
        assert answer.status_code == 400
        assert "curl -F file=@image.jpg, with @" in answer.json()["error"]
        assert client.post("/predict", files={"file": image}).status_code == 200
        answer = client.post("/predict", content=image, headers={"Content-Encoding": "br"})
        assert answer.status_code == 415
        assert "expected the Content-Encoding gzip, deflate or none" in answer.json()["error"]
        answer = client.post("/predict", files=[("file", image)] * 17)
        assert answer.status_code == 413
        assert "expected at most 16 images" in answer.json()["error"]
    assert "## Serving" in (ROOT / "docs/deployment.md").read_text(encoding="utf-8")


@case("a status 503 from the server")
def busy_server(desk: Desk) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    pytest.importorskip("httpx")
    import threading
    from concurrent.futures import ThreadPoolExecutor

    from ppxcls.deploy.predict import Prediction
    from ppxcls.serving.app import Limits, build_app

    released = threading.Event()

    class Slow:
        description = "slow"

        def predict(self, images: list[bytes], batch_size: int) -> list[Prediction]:
            released.wait(20)
            return [Prediction("x", [0], [1.0], ["a"]) for _ in images]

    app = build_app(Slow(), Limits(batch=1, queue=1, wait=0.0))  # type: ignore[arg-type]
    with testclient.TestClient(app) as client, ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(client.post, "/predict", content=b"image") for _ in range(6)]
        busy = next(f.result() for f in iter_done(futures) if f.result().status_code == 503)
        assert int(busy.headers["retry-after"]) >= 1
        released.set()
        assert {future.result().status_code for future in futures} == {200, 503}
        assert client.post("/predict", content=b"image").status_code == 200


def iter_done(futures: list[Any]) -> Any:
    from concurrent.futures import as_completed

    return as_completed(futures, timeout=20)


@pytest.mark.parametrize("phrase", phrases())
def test_the_advice_of_a_row_ends_as_promised(phrase: str, desk: Desk) -> None:
    CASES[phrase](desk)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["train", "-c", "none.yaml"], 2),
        (["train", "-c", "FILE", "-o", "DataLoader.Train.dataset.cls_label_path=x"], 1),
    ],
)
def test_the_exit_codes_of_the_page(words: list[str], code: int, desk: Desk) -> None:
    file = desk.config()
    result = desk.command(*[file if word == "FILE" else word for word in words])
    assert result.code == code
    assert f"- {code}: " in PAGE.read_text(encoding="utf-8")
    assert len(result.errors.strip().splitlines()) == 1
