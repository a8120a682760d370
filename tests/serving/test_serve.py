"""The server in a subprocess gives correct answers under load.

For invalid requests and overload it gives a 4xx or 5xx and one line.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from struct import pack

import cv2
import numpy as np
import pytest
import yaml

import ppxcls
from ppxcls.deploy.predict import Prediction
from tests.conftest import ROOT, SMALL_NETWORK, small_config, write_images

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from ppxcls.serving.app import Limits, build_app
from ppxcls.serving.batching import Batcher, BusyError


class Server:
    """A process of ``ppxcls serve`` on a free port."""

    def __init__(self, model: Path, *words: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "ppxcls", "serve", str(model), "--port", str(self.port), *words]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(self.process.communicate()[0])

    def ask(
        self, body: bytes | Iterator[bytes], path: str = "/predict", method: str = "POST"
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body if method == "POST" else None)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    data = write_images(folder / "data", 30)
    write_images(data, 7, seed=1, name="val")
    (data / "class_names.txt").write_text("0 a\n1 b\n2 c\n")
    keys = {"Arch": {"name": "SmallNetwork"}, "Global.plugins": [SMALL_NETWORK]}
    (folder / "config.yaml").write_text(yaml.safe_dump(small_config(data, folder / "output", **keys)))
    trainer = ppxcls.build_trainer(ppxcls.load_config(folder / "config.yaml"))
    trainer.fit()
    return trainer.output_dir


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    server = Server(run)
    yield server
    server.process.kill()
    server.process.communicate()


def images(run: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((run.parents[1] / "data/train").glob("*.png"))]


def bomb() -> bytes:
    """Returns a PNG of 60,000 x 60,000 pixels in a few hundred kilobytes."""
    header = pack(
        ">IIBBBBB",
        60_000,
        60_000,
        8,
        2,
        0,
        0,
        0,
    )
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000_000), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        pack(">I", len(d)) + n + d + pack(">I", zlib.crc32(n + d)) for n, d in chunks
    )


def line_of_pixels() -> bytes:
    """Returns a PNG of 40,000 x 1 pixels. Resizing its shorter side to 75 would give 225 million pixels."""
    return cv2.imencode(".png", np.zeros((1, 40_000, 3), np.uint8))[1].tobytes()


def test_fifty_clients_get_their_own_answers(server: Server, run: Path) -> None:
    """No wrong or lost answers. The answers match ``predict``."""
    sources = images(run)
    expected = ppxcls.load(run).predict(sources)
    with ThreadPoolExecutor(50) as pool:
        answers = list(
            pool.map(lambda i: (i % len(sources), server.ask(sources[i % len(sources)])), range(500))
        )
    for i, (status, text) in answers:
        assert status == 200, text
        answer = json.loads(text)
        assert answer["class_ids"] == expected[i].class_ids
        assert answer["label_names"] == [("a", "b", "c")[k] for k in answer["class_ids"]]
        np.testing.assert_allclose(answer["scores"], expected[i].scores, atol=1e-4)
    status, text = server.ask(b"", "/metrics", "GET")
    assert status == 200
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['ppxcls_requests_total{status="200"}']) >= 500
    assert float(values["ppxcls_batch_size_sum"]) >= 500
    assert float(values["ppxcls_batch_size_count"]) < float(values["ppxcls_batch_size_sum"]), (
        "requests were put together"
    )
    assert float(values["ppxcls_waiting"]) == 0


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "expected an image file as the body"),
        (b"<!doctype html><script>alert(1)</script>", 422, "image"),
        (b"\xff\xd8\xff\xe0" + bytes(100), 422, ""),
        (bytes((20 << 20) + 1), 413, "the image has more than 20,971,520 bytes"),
        (bomb(), 422, "pixels"),
        (line_of_pixels(), 422, "40000 x 1 pixels would become 3000000 x 75; too many"),
    ],
    ids=["empty", "html", "broken", "large", "bomb", "line"],
)
def test_what_is_no_image_is_refused_and_the_server_lives(
    body: bytes, status: int, message: str, server: Server, run: Path
) -> None:
    received, text = server.ask(body)
    assert received == status, text
    assert message in json.loads(text)["error"]
    assert server.ask(images(run)[0])[0] == 200


def test_a_body_without_a_length_is_limited_too(server: Server) -> None:
    status, text = server.ask(bytes(1 << 20) for _ in range(30))
    assert status == 413, text


def test_other_paths(server: Server) -> None:
    status, text = server.ask(b"", "/healthz", "GET")
    assert (status, json.loads(text)["status"]) == (200, "ok")
    status, text = server.ask(b"", "/", "GET")
    assert status == 200
    assert "Drop images here" in text
    assert "http" not in text.replace("<!doctype html>", ""), "the page loads nothing from elsewhere"
    assert server.ask(b"", "/predict", "GET")[0] == 405
    assert server.ask(b"", "/nowhere", "GET")[0] == 404


def test_it_ends_cleanly(run: Path) -> None:
    """Requests in progress are answered, and the exit code is 0."""
    server = Server(run)
    body = images(run)[0]
    answers: list[tuple[int, str]] = []
    threads = [threading.Thread(target=lambda: answers.append(server.ask(body))) for _ in range(20)]
    for thread in threads:
        thread.start()
    while not answers:
        time.sleep(0.005)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) in (0, -signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [200] * 20


def test_a_model_that_is_none_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ppxcls", "serve", str(tmp_path / "nothing")]
    result = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, env={**os.environ}
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1


def test_batches_a_full_queue_and_a_failing_function() -> None:
    sizes: list[int] = []

    def double(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        time.sleep(0.02)
        if 13 in items:
            raise ValueError("unlucky")
        return [2 * item for item in items]

    async def use() -> None:
        batcher = Batcher(double, max_items=4, wait=0.01, queue_size=8)
        await batcher.start()
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.015)  # the first request is being processed
        others = [asyncio.create_task(batcher(i)) for i in range(1, 9)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await batcher(9)
        assert await asyncio.gather(first, *others) == [2 * i for i in range(9)]
        assert max(sizes) == 4
        with pytest.raises(ValueError, match="unlucky"):
            await batcher(13)
        assert await batcher(14) == 28
        gone = asyncio.create_task(batcher(15))
        await asyncio.sleep(0)
        gone.cancel()
        assert await batcher(16) == 32
        await batcher.stop()

    asyncio.run(use())


def test_busy_and_late_are_said() -> None:
    """A slow predictor: 503 with Retry-After if the queue is full, 504 after the time limit."""
    testclient = pytest.importorskip("starlette.testclient")
    pytest.importorskip("httpx")

    class Slow:
        description = "slow"

        def predict(self, images: Sequence[bytes], batch_size: int) -> list[Prediction]:
            time.sleep(0.6)
            return [Prediction("x", [0], [1.0], ["a"]) for _ in images]

    app = build_app(Slow(), Limits(batch=1, queue=1, wait=0.0, seconds=0.9))  # type: ignore[arg-type]
    _, data = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))
    with testclient.TestClient(app) as client, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: client.post("/predict", content=data.tobytes()), range(6)))
    found = [answer.status_code for answer in answers]
    assert 200 in found
    assert 503 in found
    assert set(found) <= {200, 503, 504}
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 503)
