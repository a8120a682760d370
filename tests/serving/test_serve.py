"""The server in a subprocess gives correct answers under load.

For invalid requests and overload it gives a 4xx or 5xx and one line.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import http.client
import inspect
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
from ppxcls.config.sections import PostProcessSection
from ppxcls.data.errors import DataError
from ppxcls.deploy.answer_limits import NO_LIMITS
from ppxcls.deploy.predict import DEFAULT_TOPK, Prediction, Predictor
from tests.conftest import ROOT, SMALL_NETWORK, small_config, write_images

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from ppxcls.serving.address import check_origins
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
        self,
        body: bytes | Iterator[bytes],
        path: str = "/predict",
        method: str = "POST",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body if method == "POST" else None, headers or {})
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
    for path, method, expected_status in (
        ("/predict", "GET", 405),
        ("/predict", "PUT", 405),
        ("/nowhere", "GET", 404),
    ):
        status, text = server.ask(b"", path, method)
        assert status == expected_status
        assert "POST an image to /predict: send the file itself (curl" in json.loads(text)["error"]


def form(files: Sequence[bytes], topk: str = "") -> tuple[bytes, dict[str, str]]:
    """Returns the body and the headers of a form, as ``curl -F`` sends them."""
    parts = [
        f'--b0\r\nContent-Disposition: form-data; name="file"; filename="{i}.png"\r\n'
        "Content-Type: image/png\r\n\r\n".encode()
        + file
        for i, file in enumerate(files)
    ]
    if topk:
        parts.append(f'--b0\r\nContent-Disposition: form-data; name="topk"\r\n\r\n{topk}'.encode())
    headers = {"Content-Type": "multipart/form-data; boundary=b0"}
    return b"".join(part + b"\r\n" for part in parts) + b"--b0--\r\n", headers


def json_body(**keys: object) -> tuple[bytes, dict[str, str]]:
    return json.dumps(keys).encode(), {"Content-Type": "application/json"}


def test_every_form_of_a_request_gets_the_same_answer(server: Server, run: Path) -> None:
    first, second = images(run)[:2]
    expected = [json.loads(server.ask(image)[1]) for image in (first, second)]
    assert len(expected[0]["class_ids"]) == 3
    text, other_text = (base64.b64encode(image).decode() for image in (first, second))
    packed = {"Content-Encoding": "gzip"}
    single_forms = [
        form([first]),
        json_body(image=text),
        json_body(image=f"data:image/png;base64,{text}"),
        (gzip.compress(first), packed),
        (gzip.compress(form([first])[0]), form([])[1] | packed),
        (gzip.compress(json_body(image=text)[0]), json_body()[1] | packed),
    ]
    for body, headers in single_forms:
        status, answer = server.ask(body, headers=headers)
        assert (status, json.loads(answer)) == (200, expected[0])
    for (body, headers), names in (
        (form([first, second]), ["0.png", "1.png"]),
        (json_body(images=[text, other_text]), ["image 0", "image 1"]),
    ):
        status, answer = server.ask(body, headers=headers)
        entries = json.loads(answer)["predictions"]
        assert status == 200
        assert entries == [
            {"file": name, **prediction} for name, prediction in zip(names, expected, strict=True)
        ]
    for body, path, headers in (
        (first, "/predict?topk=2", {}),
        (*json_body(image=text, topk=2)[:1], "/predict", json_body()[1]),
        (form([first], "2")[0], "/predict", form([])[1]),
        (form([first], "1")[0], "/predict?topk=2", form([])[1]),
    ):
        answer = json.loads(server.ask(body, path, headers=headers)[1])
        assert answer == {key: values[:2] for key, values in expected[0].items()}
    assert json.loads(server.ask(first, "/predict?topk=900")[1]) == expected[0]


def test_forms_that_are_refused(server: Server, run: Path) -> None:
    image = images(run)[0]
    limit = 20 << 20
    for (body, headers), path, expected_status, message in (
        (form([image, b"no image"]), "/predict?topk=0", 400, "expected topk as a whole number"),
        (form([image]), "/predict?top_k=1", 400, "unknown parameter 'top_k'; allowed: topk"),
        (form([image] * 17), "/predict", 413, "at most 16 images"),
        (form([bytes(limit // 2)] * 3), "/predict", 413, "more than 20,971,520 bytes"),
        (form([bytes(limit // 2 + 9)] * 2), "/predict", 413, "the images of the request have more than"),
        ((gzip.compress(bytes(limit + 1)), {"Content-Encoding": "gzip"}), "/predict", 413, "more than"),
        ((image, {"Content-Encoding": "br"}), "/predict", 415, "gzip, deflate or none, received 'br'"),
        (json_body(image="http://127.0.0.1/a.jpg"), "/predict", 400, "nothing is downloaded"),
        (form([b"no image"]), "/predict", 422, "not an image"),
    ):
        status, text = server.ask(body, path, headers=headers)
        assert status == expected_status, text
        assert message in json.loads(text)["error"]
    body, headers = form([b"no image", image])
    status, text = server.ask(body, headers=headers)
    first, second = json.loads(text)["predictions"]
    assert status == 200
    assert (first.keys(), "not an image" in first["error"]) == ({"file", "error"}, True)
    assert second["class_ids"]
    body, headers = form([b"no image", b"none"])
    assert server.ask(body, headers=headers)[0] == 422


def test_the_openapi_document_describes_the_answers(server: Server, run: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    status, text = server.ask(b"", "/openapi.json", "GET")
    document = json.loads(text)
    assert status == 200
    operation = document["paths"]["/predict"]["post"]
    assert {"image/*", "multipart/form-data", "application/json"} <= operation["requestBody"][
        "content"
    ].keys()

    def validate(instance: object, schema: dict[str, object]) -> None:
        schema = {**schema, "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(instance)

    text = base64.b64encode(images(run)[0]).decode()
    bad_text = base64.b64encode(b"none").decode()
    json_schema = operation["requestBody"]["content"]["application/json"]["schema"]
    for request in (
        {"image": text},
        {"images": [text, bad_text], "topk": 2},
        {"images": [bad_text]},
        {"image": bad_text},
    ):
        validate(request, json_schema)
        body, headers = json_body(**request)
        status, answer = server.ask(body, headers=headers)
        schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
        validate(json.loads(answer), schema)
    for wrong_request in ({}, {"image": text, "images": [text]}, {"file": text}, {"images": []}):
        with pytest.raises(jsonschema.ValidationError):
            validate(wrong_request, json_schema)
        body, headers = json_body(**wrong_request)
        status, answer = server.ask(body, headers=headers)
        assert status == 400
        validate(json.loads(answer), operation["responses"]["400"]["content"]["application/json"]["schema"])


def test_nothing_about_the_machine_is_told(server: Server, run: Path) -> None:
    status, text = server.ask(b"", "/healthz", "GET")
    assert (status, json.loads(text)) == (200, {"status": "ok", "model": "SmallNetwork"})
    for path in ("/metrics", "/openapi.json", "/", "/nowhere"):
        _, text = server.ask(b"", path, "GET")
        for word in (str(run), "/root", "/home", ppxcls.__version__, "uvicorn"):
            assert word not in text, path


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:1", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
    ],
)
def test_other_host_names_are_refused(host: str, status: int, server: Server) -> None:
    received, text = server.ask(b"", "/healthz", "GET", {"Host": host})
    assert received == status, text
    if status != 200:
        assert "does not answer for the host" in json.loads(text)["error"]


def raw_answer(server: Server, data: bytes) -> tuple[bytes, bytes]:
    """Returns the first line of an answer and its last one; the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(data)
        lines = b"".join(iter(lambda: connection.recv(1 << 16), b"")).splitlines()
    return lines[0], lines[-1]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"X" * 70_000 + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"431 "),
        (b"FOO / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"501 "),
        (b"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n", b"505 "),
        (b"GET / HTTP/1.1\r\n\r\n", b"400 "),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"431 "),
        (b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400 "),
    ],
)
def test_odd_http_gets_one_short_line(data: bytes, status: bytes, server: Server) -> None:
    first_line, last_line = raw_answer(server, data)
    assert first_line.startswith(b"HTTP/1.1 " + status)
    assert len(json.loads(last_line)["error"]) <= 500


def test_idle_connections_make_room(run: Path) -> None:
    """Eight connections are allowed. Idle ones, half heads and half bodies are ended for honest clients."""
    server = Server(run, "--connections", "8")
    half_body = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx"
    try:
        for first in (b"", b"GET / HT", half_body):
            crowd = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(20)]
            for connection in crowd:
                with contextlib.suppress(OSError):
                    connection.sendall(first)
            statuses = []
            while not statuses or statuses[-1] == 503:
                with contextlib.suppress(OSError):
                    statuses.append(server.ask(images(run)[0])[0])
            assert statuses[-1] == 200
            for connection in crowd:
                connection.close()
    finally:
        server.process.kill()
        server.process.communicate()


def test_options_of_access_and_size(run: Path) -> None:
    server = Server(run, "--allowed-host", "images.example", "--pixels", "0.01", "--proxy", "127.0.0.1")
    try:
        assert server.ask(b"", "/healthz", "GET", {"Host": "images.example:80"})[0] == 200
        assert server.ask(b"", "/healthz", "GET", {"Host": "evil.example"})[0] == 421
        _, data = cv2.imencode(".png", np.zeros((101, 100, 3), np.uint8))
        status, text = server.ask(data.tobytes())
        assert (status, json.loads(text)["error"]) == (
            422,
            "100 x 101 pixels; an image may have at most 10,000 (the server's option --pixels)",
        )
        _, data = cv2.imencode(".png", np.zeros((100, 100, 3), np.uint8))
        assert server.ask(data.tobytes())[0] == 200
    finally:
        server.process.kill()
        server.process.communicate()


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


def serve_here(*words: str, model: str = "nothing") -> subprocess.CompletedProcess[str]:
    """Runs ``ppxcls serve`` with a model that does not exist, so that it can't get past the checks."""
    command = [sys.executable, "-m", "ppxcls", "serve", model, *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--port", "99999"], 2, "--port: expected a port from 0 to 65535, received '99999'"),
        (["--port", "-1"], 2, "--port: expected a port from 0 to 65535, received '-1'"),
        (["--port", "abc"], 2, "--port: expected a port from 0 to 65535, received 'abc'"),
        (["--port", "TAKEN"], 1, "of 127.0.0.1 is taken by another program; choose another --port"),
        (["--host", "192.0.2.1"], 1, "the host '192.0.2.1' is not an address of this machine"),
        (["--host", "no.such.host.invalid"], 1, "expected an address of this machine, received the host"),
        (["--host", ""], 1, "expected a host such as 127.0.0.1"),
        (["--port", "0", "--cors", "https://example.org/"], 1, "expected an origin such as https://example.org"),
        (["--port", "0", "--batch", "0"], 1, "expected a batch and a queue of at least 1"),
        (["--port", "0", "--allowed-host", "a.org:80"], 1, "expected an allowed host as a name or an address"),
        (["--port", "0", "--proxy", "a.org"], 1, "expected the address of a proxy such as 127.0.0.1"),
        (["--port", "0", "--connections", "1"], 1, "connections: expected a number from 8 to 100000"),
        (["--port", "0", "--memory", "1"], 1, "memory: expected a number from 64"),
        (["--port", "0", "--pixels", "0"], 1, "pixels: expected a number from 0.01"),
        (["--port", "0", "--pixels", "nan"], 1, "pixels: expected a number from 0.01"),
        (["--port", "0", "--decode-seconds", "-1"], 1, "decode_seconds: expected a number from 0.1"),
    ],
)  # fmt: skip
def test_an_address_that_can_t_be_used_is_known_before_the_model(
    words: list[str], code: int, message: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = [str(taken.getsockname()[1]) if word == "TAKEN" else word for word in words]
        result = serve_here(*words)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert "nothing" not in result.stderr, "the model was looked for"


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.org",
        "https://shop.example.org",
        "http://localhost:8000",
        "https://status.sensors.example:8443",
        "http://[::1]:8000",
        "*",
    ],
)
def test_origins_of_pages(origin: str) -> None:
    check_origins([origin])
    check_origins(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.org/",
        "https://example.org/page",
        "https://a example.org",
        "https://example.org ",
        "https://example.org\n",
        "https://example.org\\page",
        "https://example.org?a",
        "https://a@example.org",
        "https://a.org,https://b.org",
        "https://",
        "example.org",
        "ftp://example.org",
        "",
    ],
)
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(DataError, match="expected an origin such as https://example.org, without a path"):
        check_origins([origin])


@pytest.mark.parametrize("port", [-1, 65536, "8000", True])
def test_a_port_in_python(port: object) -> None:
    with pytest.raises(DataError, match="expected a port from 0 to 65535, received"):
        ppxcls.serve("nothing", port=port)  # type: ignore[arg-type]


def test_a_free_port_is_printed_and_other_pages_need_an_option(run: Path) -> None:
    command = [sys.executable, "-m", "ppxcls", "serve", str(run), "--port", "0", "--cors", "https://a.org"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        port = next(int(line.rsplit(":", 1)[1]) for line in lines if "listening at http://127.0.0.1:" in line)
        for origin, status, expected in (
            ("https://a.org", 200, "https://a.org"),
            ("https://b.org", 403, None),
            (f"http://127.0.0.1:{port}", 200, None),
        ):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/predict", images(run)[0], {"Origin": origin})
            response = connection.getresponse()
            assert response.status == status
            assert response.getheader("Access-Control-Allow-Origin") == expected
            connection.close()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        connection.request("OPTIONS", "/predict", headers={"Origin": "https://a.org", **asked})
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://a.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://localhost:PORT"}, 403),
        ({"Origin": "http://127.0.0.1:PORT"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({}, 200),
    ],
)
def test_without_the_option_no_other_page_is_allowed(
    headers: dict[str, str], status: int, server: Server, run: Path
) -> None:
    headers = {name: value.replace("PORT", str(server.port)) for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/predict", images(run)[0], headers)
    response = connection.getresponse()
    assert response.status == status, response.read()
    assert response.getheader("Access-Control-Allow-Origin") is None
    connection.close()


IN_A_LOOP = """
import asyncio, sys, ppxcls
async def cell():
    ppxcls.serve(sys.argv[1], port=0)
    print("ended", flush=True)
asyncio.run(cell())
"""


def test_a_server_in_a_running_event_loop(run: Path) -> None:
    """As in a notebook: it serves until it is interrupted, and the cell goes on."""
    command = [sys.executable, "-c", IN_A_LOOP, str(run)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        port = next(int(line.rsplit(":", 1)[1]) for line in lines if "listening at" in line)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/predict", images(run)[0])
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        process.send_signal(signal.SIGINT)
    assert process.stdout.read() == "ended\n"
    assert process.wait(timeout=60) == 0


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
        first = asyncio.create_task(batcher.answers([0]))
        await asyncio.sleep(0.015)  # the first request is being processed
        others = [asyncio.create_task(batcher.answers([i])) for i in range(1, 9)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await batcher.answers([9])
        with pytest.raises(BusyError):
            await batcher.answers([9, 10])
        assert await asyncio.gather(first, *others) == [[2 * i] for i in range(9)]
        assert await batcher.answers([3, 4, 5, 6, 7]) == [6, 8, 10, 12, 14]
        assert max(sizes) == 4
        with pytest.raises(ValueError, match="unlucky"):
            await batcher.answers([13])
        assert await batcher.answers([14]) == [28]
        gone = asyncio.create_task(batcher.answers([15]))
        await asyncio.sleep(0)
        gone.cancel()
        assert await batcher.answers([16]) == [32]
        await batcher.stop()

    asyncio.run(use())


def test_the_default_number_of_classes_is_one_fact(server: Server) -> None:
    """The document, a predictor, and a config without the key."""
    _, text = server.ask(b"", "/openapi.json", "GET")
    (parameter,) = json.loads(text)["paths"]["/predict"]["post"]["parameters"]
    assert parameter["schema"]["default"] == DEFAULT_TOPK
    assert inspect.signature(Predictor.predict).parameters["topk"].default == DEFAULT_TOPK
    assert PostProcessSection().topk == DEFAULT_TOPK


def test_busy_and_late_are_said() -> None:
    """A slow predictor: 503 with Retry-After if the queue is full, 504 after the time limit."""
    testclient = pytest.importorskip("starlette.testclient")
    pytest.importorskip("httpx")

    class Slow:
        model = "slow"
        decodes_images = True
        limits = NO_LIMITS

        def prepare(self, image: bytes) -> bytes:
            return image

        def predict_prepared(self, images: Sequence[bytes], topk: int) -> list[Prediction]:
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
