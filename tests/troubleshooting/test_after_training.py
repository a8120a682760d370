"""Rows of the section "After training" of ``docs/troubleshooting.md``."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

import ppxcls
from ppxcls.deploy.answer_limits import NO_LIMITS
from ppxcls.deploy.runners import Runner, onnx_runner
from tests.conftest import ROOT
from tests.troubleshooting.desk import Desk, case


@case("shows numbers in the place of names")
def test_names_without_a_font(desk: Desk) -> None:
    font_manager = pytest.importorskip("matplotlib.font_manager")
    from tests.reports.test_fonts import font_of

    installed_fonts: list[str] = []
    own_fonts = [e for e in font_manager.fontManager.ttflist if "mpl-data" in e.fname]
    desk.monkeypatch.setattr(font_manager.fontManager, "ttflist", own_fonts)
    desk.monkeypatch.setattr(font_manager, "findSystemFonts", lambda: installed_fonts)
    (desk.data / "class_names.txt").write_text("0 猫\n1 dog\n2 bee\n", encoding="utf-8")
    text = desk.works("train", "-c", desk.config())
    assert "balance.png shows numbers in the place of names: " in text
    assert "install a font, such as Noto Sans CJK" in text
    assert "猫" in (desk.run / "report.html").read_text(encoding="utf-8")
    installed_fonts.append(str(font_of("猫", desk.folder / "a.ttf", "Cats")))
    assert "in the place of names" not in desk.works("report", desk.run)


@case("evaluation transforms against")
def test_other_preparation(desk: Desk) -> None:
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
def test_no_best_model(desk: Desk) -> None:
    file = desk.config()
    desk.works("train", "-c", file, "-o", "Global.eval_during_train=False")
    assert "no best_model, because no evaluation has chosen one; latest is used" in desk.works(
        "eval", "-c", desk.run
    )
    desk.works("train", "-c", file)
    assert "no best_model" not in desk.works("eval", "-c", desk.run)


@case("writing ONNX needs")
def test_no_onnx_writer(desk: Desk) -> None:
    desk.works("train", "-c", desk.config())
    with desk.monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnx", None)
        message = desk.fails("export", "-c", desk.run, "--format", "onnx")
        assert "writing ONNX needs" in message
        desk.works("export", "-c", desk.run, "--format", "paddle")
    assert list((desk.folder / "inference").glob("inference.*"))


@case("ONNX: the operator … is not supported")
def test_operator_without_a_translation(desk: Desk) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    plugin = desk.folder / "mirrored_network.py"
    plugin.write_text(
        "import paddle\nimport ppxcls\nfrom paddle import nn\n\n\n"
        "class Mirrored(nn.Layer):\n    def __init__(self, class_num):\n        super().__init__()\n"
        "        self.fc = nn.Linear(3, class_num)\n\n"
        "    def forward(self, images):\n"
        "        return self.fc(paddle.flip(images, axis=[3]).mean(axis=[2, 3]))\n\n\n"
        "@ppxcls.MODELS.register\ndef MirroredNetwork(class_num: int = 3) -> nn.Layer:\n"
        '    """A network that mirrors its images."""\n    return Mirrored(class_num)\n'
    )
    names = ppxcls.MODELS.registered()
    file = desk.config(Arch={"name": "MirroredNetwork"}, **{"Global.plugins": [str(plugin)]})
    try:
        desk.works("train", "-c", file, "--trust")
        message = desk.fails("export", "-c", desk.folder / "output/MirroredNetwork")
    finally:
        ppxcls.MODELS.forget(ppxcls.MODELS.registered() - names)
    assert "ONNX: the operator flip" in message
    assert message.endswith(" is not supported")
    image = desk.data / "val/0000.png"
    assert not (desk.folder / "inference/inference.onnx").exists()
    desk.works("infer", "--exported", "inference", image)
    assert "### Networks of your own" in (ROOT / "docs/deployment.md").read_text(encoding="utf-8")


@case("differs from the network by")
def test_wrong_export(desk: Desk) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from ppxcls.deploy import export

    def wrong_runner(file: Path, **keys: Any) -> Runner:
        run = onnx_runner(file, **keys)
        return lambda images: run(images) + np.float32(1e-3)

    desk.works("train", "-c", desk.config())
    with desk.monkeypatch.context() as patch:
        patch.setattr(export, "onnx_runner", wrong_runner)
        message = desk.fails("export", "-c", desk.run)
    assert "ONNX Runtime differs from the network by 1.00e-03" in message
    assert not (desk.folder / "inference/inference.onnx").exists()
    desk.works("export", "-c", desk.run)
    assert (desk.folder / "inference/inference.onnx").is_file()


@case("is taken by another program")
def test_taken_port(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        message = desk.fails("serve", "none", "--port", str(server.getsockname()[1]))
        assert "is taken by another program" in message
        # With a free port, the next error is that of the model, which does not exist.
        assert "is taken" not in desk.fails("serve", "none", "--port", "0", code=2)


@case("is not an address of this machine")
def test_other_address(desk: Desk) -> None:
    assert "is not an address of this machine" in desk.fails("serve", "none", "--host", "192.0.2.1")
    for host in ("127.0.0.1", "0.0.0.0"):
        words = ("serve", "none", "--host", host, "--port", "0")
        assert "is not an address" not in desk.fails(*words, code=2)


@case("a status 400, 413, 415 or 422 from the server")
def test_refused_request(desk: Desk) -> None:
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
def test_busy_server(desk: Desk) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    pytest.importorskip("httpx")
    import threading
    from concurrent.futures import ThreadPoolExecutor

    from ppxcls.deploy.predict import Prediction
    from ppxcls.serving.app import Limits, build_app

    released = threading.Event()

    class Slow:
        model = "slow"
        decodes_images = False
        limits = NO_LIMITS

        def prepare(self, image: bytes) -> bytes:
            return image

        def predict_prepared(self, images: list[bytes], topk: int) -> list[Prediction]:
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
