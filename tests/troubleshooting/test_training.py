"""Rows of the section "Training" of ``docs/troubleshooting.md``."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import paddle
import pytest

import ppxcls
from ppxcls.system import supervisor
from tests.conftest import ROOT, run_tool, write_images
from tests.troubleshooting.desk import Desk, case


@case("the loss is not finite, a gradient was not finite")
def test_loss_not_finite(desk: Desk) -> None:
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
def test_skipped_steps(desk: Desk) -> None:
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


@case("nothing to do: ")
def test_a_run_that_stopped_early(desk: Desk) -> None:
    desk.monkeypatch.setattr("ppxcls.reports.page.report_after_training", lambda folder: None)
    # No accuracy improves by more than 1.
    early_stop = {"Global.early_stop": {"patience": 1, "min_delta": 1.0}, "Global.checkpoints": "auto"}
    file = desk.config(**{"Global.epochs": 3, **early_stop})
    assert "The run stopped early, after epoch 2 of 3: " in desk.works("train", "-c", file)
    assert "nothing to do: The run stopped early, after epoch 2 of 3: " in desk.works("train", "-c", file)
    patient = ("-o", "Global.early_stop.patience=9")
    assert "[Train][Epoch 3/3]" in desk.works("train", "-c", file, *patient)
    assert "nothing to do: 3 of 3 epochs are done" in desk.works("train", "-c", file)
    assert "[Train][Epoch 4/4]" in desk.works("train", "-c", file, *patient, "-o", "Global.epochs=4")


@case("the loss diverges")
def test_loss_diverges(desk: Desk) -> None:
    file = desk.config(**{"Global.epochs": 15, "Global.eval_during_train": False})
    text = desk.works(
        "train", "-c", file, "-o", "Optimizer.lr={name: Piecewise, decay_epochs: [6], values: [0.001, 100]}"
    )
    assert "the loss diverges: " in text
    assert "the loss diverges: " not in desk.works("train", "-c", file)


@case("no progress for … s at")
def test_hang(desk: Desk) -> None:
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


@pytest.mark.slow
@case("the … of rank … differs from that of rank 0")
def test_other_rank(desk: Desk) -> None:
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
def test_host_name(desk: Desk) -> None:
    desk.monkeypatch.setattr(supervisor.socket, "gethostbyname", lambda name: "127.0.1.1")
    words = ["--nnodes", "2", "--master", "10.0.0.1:49178"]
    problem = supervisor.host_problem(words)
    assert problem is not None
    assert problem.startswith("this host's name resolves to 127.0.1.1, so the other nodes can't reach it")
    assert "add --host" in problem
    assert supervisor.host_problem([*words, "--host", "10.0.0.2"]) is None


@case("out of memory")
def test_out_of_memory(desk: Desk) -> None:
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
        message = desk.fails("train", "-c", file, "--trust")
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
def test_slow(desk: Desk) -> None:
    text = desk.works("train", "-c", desk.config())
    assert re.search(r"batch_cost: [\d.]+s, reader_cost: [\d.]+s", text)
    desk.works("train", "-c", desk.config(), "-o", "DataLoader.Train.loader.num_workers=2")
    measurements = (ROOT / "docs/measurements.md").read_text(encoding="utf-8")
    assert "## How the speed is reached" in measurements


@case("a report needs, the report can't be written")
def test_no_report(desk: Desk) -> None:
    with desk.monkeypatch.context() as patch:
        patch.setitem(sys.modules, "jinja2", None)
        text = desk.works("train", "-c", desk.config())
    assert re.search(r"a report needs jinja2, .*: pip install 'ppxcls\[report\]'", text)
    assert not (desk.run / "report.html").exists()
    desk.works("report", desk.run)
    assert (desk.run / "report.html").is_file()
