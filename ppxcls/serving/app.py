"""HTTP server: receives images and answers with JSON; with health, metrics, and a page to try it.

LitServe (0.2.19) provides batching, but its queues are unbounded, and it removes the size limit of a request
body. With Starlette, both take a few lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ppxcls.deploy.build import load
from ppxcls.deploy.predict import DEFAULT_TOPK, Prediction, Predictor
from ppxcls.serving.address import url_of
from ppxcls.serving.batching import Batcher, BusyError
from ppxcls.serving.bodies import (
    RIGHT_CALLS,
    BodyLimits,
    RequestError,
    Submission,
    advice,
    content_kind,
    decompressed,
    read_submission,
    read_topk,
)
from ppxcls.serving.openapi import openapi_document
from ppxcls.system.logs import logger, set_up_logging
from ppxcls.train.predictions import NOT_FINITE

_PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
_BACKLOG = 2048  # connections that the system accepts before the server does
_POLL_SECONDS = 0.2  # time until Ctrl-C is noticed while the server runs in a thread
_UNBOUNDED_IMAGES = 1 << 40  # images; so many that the network is compiled at the first batch
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src blob:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Limits:
    """Limits of one server.

    Attributes:
        body: largest size of an image file, and of all image files of a request together, in bytes.
        images: largest number of images in a request.
        batch: largest number of images in a batch.
        wait: longest time that a batch waits for more images, in seconds.
        queue: largest number of waiting images; more are answered with 503.
        seconds: longest time until an answer, in seconds; after it the answer is 504.
    """

    body: int = 20 << 20
    images: int = 16
    batch: int = 16
    wait: float = 0.005
    queue: int = 128
    seconds: float = 30.0

    @property
    def of_body(self) -> BodyLimits:
        """Limits of one request. Its images must fit into the queue."""
        return BodyLimits(self.body, min(self.images, self.queue))


class _Image(NamedTuple):
    """An image that waits for its prediction: content of the file, and number of classes to answer with."""

    data: bytes
    topk: int | None


class Service:
    """Answers requests with a predictor.

    Args:
        predictor: predictor of a run or of exported files.
        limits: limits of the server.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self._predictor = predictor
        self._limits = limits
        self.registry = CollectorRegistry()
        self._requests = Counter("ppxcls_requests", "Answers by status", ["status"], registry=self.registry)
        self._seconds = Histogram(
            "ppxcls_request_seconds", "From the request to its answer", registry=self.registry
        )
        sizes = [2**i for i in range(9)]
        self._batches = Histogram(
            "ppxcls_batch_size", "Images in a batch", registry=self.registry, buckets=sizes
        )
        Gauge("ppxcls_waiting", "Images in the queue", registry=self.registry).set_function(
            lambda: self._batcher.waiting
        )
        self._batcher: Batcher[_Image, Prediction] = Batcher(
            self._predict,
            limits.batch,
            wait=limits.wait,
            queue_size=limits.queue,
            on_batch=lambda count, _: self._batches.observe(count),
        )

    def _predict(self, images: Sequence[_Image]) -> list[Prediction]:
        """Predicts a batch with the largest ``topk`` of its images, and cuts each prediction to its own."""
        options = {"batch_size": self._limits.batch}
        if any(image.topk is not None for image in images):
            options["topk"] = max(image.topk or DEFAULT_TOPK for image in images)
        predictions = self._predictor.predict([image.data for image in images], **options)
        return [
            _first_classes(prediction, image.topk or DEFAULT_TOPK)
            for prediction, image in zip(predictions, images, strict=True)
        ]

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Runs while the server runs; at the end, it answers the waiting images."""
        await self._batcher.start()
        yield
        await self._batcher.stop()

    async def predict(self, request: Request) -> Response:
        """Answers ``POST /predict`` with JSON; ``openapi.json`` describes the forms of a request.

        The JSON contains ``class_ids``, ``scores`` and ``label_names``, the best class first. For several
        images, it contains a list ``predictions`` of such objects.
        """
        start = time.perf_counter()
        status, content = await self._answer(request)
        self._requests.labels(status).inc()
        self._seconds.observe(time.perf_counter() - start)
        return JSONResponse(content, status, headers={"Retry-After": "1"} if status == 503 else None)

    async def _answer(self, request: Request) -> tuple[int, dict[str, Any]]:
        try:
            if self._batcher.waiting >= self._limits.queue:  # before the body takes memory
                raise BusyError
            topk = _topk_parameter(request)
            content_type = request.headers.get("content-type", "")
            body = await asyncio.wait_for(self._body(request), self._limits.seconds)
            submission = await self._submission(body, request)
            items = [_Image(image, topk or submission.topk) for image in submission.images]
            predictions = await asyncio.wait_for(self._batcher.answers(items), self._limits.seconds)
        except RequestError as error:
            return error.status, {"error": str(error)}
        except BusyError:
            return 503, {"error": "too many images are waiting; try again later"}
        except ClientDisconnect:
            return 499, {"error": "the client has disconnected"}
        except (TimeoutError, asyncio.TimeoutError):
            return 504, {"error": f"no answer within {self._limits.seconds:g} s"}
        except Exception as error:
            logger.exception("a batch failed")
            return 500, {"error": type(error).__name__}
        answers = [_answer_to(prediction) for prediction in predictions]
        if not submission.is_list:
            status, content = answers[0]
            if status == 422 and submission.images[0] is body:
                content["error"] += advice(body, content_type)
            return status, content
        entries = [
            {"file": name, **entry} for name, (_, entry) in zip(submission.names, answers, strict=True)
        ]
        # 200 if there is any prediction: a client sees at each entry which one has failed.
        return min(status for status, _ in answers), {"predictions": entries}

    async def _submission(self, body: bytes, request: Request) -> Submission:
        """Finds the images of a body, in a thread, because a large body may take long to unpack."""
        content_type = request.headers.get("content-type", "")
        encoding = request.headers.get("content-encoding", "")
        limits = self._limits.of_body

        def find_images() -> Submission:
            try:
                plain_body = decompressed(body, encoding, limits.wire_size(content_kind(content_type)))
            except OverflowError:
                raise limits.too_large() from None
            return read_submission(plain_body, content_type, limits)

        return await asyncio.get_running_loop().run_in_executor(None, find_images)

    async def _body(self, request: Request) -> bytes:
        limits = self._limits.of_body
        max_size = limits.wire_size(content_kind(request.headers.get("content-type", "")))
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > max_size:
            raise limits.too_large()
        parts, size = [], 0
        async for part in request.stream():  # the length may be missing or wrong
            size += len(part)
            if size > max_size:
                raise limits.too_large()
            parts.append(part)
        return b"".join(parts)

    async def health(self, request: Request) -> Response:
        """Answers ``GET /healthz``."""
        return JSONResponse({"status": "ok", "model": self._predictor.description})

    async def metrics(self, request: Request) -> Response:
        """Answers ``GET /metrics``, in Prometheus's text format."""
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        """Answers ``GET /`` with a page to drop images on."""
        return HTMLResponse(_PAGE, headers=_HEADERS)


def _topk_parameter(request: Request) -> int | None:
    """Returns ``?topk=`` of a request; None if there is none.

    Raises:
        RequestError: the value is no whole number, or there is another parameter.
    """
    unknown_names = [name for name in request.query_params if name != "topk"]
    if unknown_names:
        raise RequestError(400, f"unknown parameter {unknown_names[0][:50]!r}; allowed: topk")
    value = request.query_params.get("topk")
    return None if value is None else read_topk(value)


def _first_classes(prediction: Prediction, topk: int) -> Prediction:
    """Returns a prediction with its best ``topk`` classes only."""
    return replace(
        prediction,
        class_ids=prediction.class_ids[:topk],
        scores=prediction.scores[:topk],
        label_names=prediction.label_names[:topk],
    )


def _answer_to(prediction: Prediction) -> tuple[int, dict[str, Any]]:
    """Returns status and JSON of one image's prediction."""
    if prediction.error:
        return 500 if prediction.error == NOT_FINITE else 422, {"error": prediction.error}
    return 200, {key: value for key, value in asdict(prediction).items() if key not in ("file", "error")}


async def _http_error(request: Request, error: Exception) -> Response:
    """Answers an unknown path or method with JSON that names the right call."""
    assert isinstance(error, HTTPException)
    message = (
        f"{error.detail}: {request.method} {request.url.path[:100]}; POST an image to /predict: {RIGHT_CALLS}"
    )
    return JSONResponse({"error": message}, error.status_code, headers=error.headers)


def build_app(predictor: Predictor, limits: Limits = Limits(), cors: Sequence[str] = ()) -> Starlette:
    """Returns the ASGI application of a predictor.

    Args:
        predictor: predictor of a run or of exported files.
        limits: limits of the server.
        cors: origins of the web pages that may use the server, such as ``https://example.org``; ``*`` for
            all of them.
    """
    service = Service(predictor, limits)
    document = openapi_document(limits.of_body, limits.queue)

    async def openapi(request: Request) -> Response:
        return JSONResponse(document)

    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/healthz", service.health),
        Route("/metrics", service.metrics),
        Route("/openapi.json", openapi),
        Route("/", service.page),
    ]
    middleware = []
    if cors:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(cors),
                allow_methods=["GET", "POST"],
                allow_headers=["Content-Type", "Content-Encoding"],
                expose_headers=["Retry-After"],
            )
        )
    return Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={HTTPException: _http_error},
        lifespan=service.lifespan,
    )


def run_server(
    path: str | Path,
    listener: socket.socket,
    *,
    batch: int = 16,
    queue: int = 128,
    cors: Sequence[str] = (),
    trust: bool = False,
) -> None:
    """Serves a run or an exported model until SIGTERM or SIGINT; requests that have begun are still answered.

    In a running event loop, such as a notebook's, the server runs in a thread with a loop of its own.

    Args:
        path: run or exported model, as for ``ppxcls.load``.
        listener: socket with the address to listen on.
        batch: largest number of images in a batch.
        queue: largest number of waiting images.
        cors: origins of the web pages that may use the server; ``*`` for all.
        trust: True to run the program of another exporter.

    Raises:
        ConfigError, CheckpointError, DataError: the model can't be used.
        OSError: another program has begun to listen at the address.
    """
    set_up_logging()
    predictor = load(path, _UNBOUNDED_IMAGES, trust=trust)
    logger.info(predictor.description)
    predictor.predict(np.zeros((600, 600, 3), np.uint8))  # compiles a run's network before the first request
    app = build_app(predictor, Limits(batch=batch, queue=queue), cors)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="on",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=30,
            # Each connection may hold a body in memory; above this number uvicorn answers 503 itself.
            limit_concurrency=2 * queue + batch,
        )
    )
    listener.listen(_BACKLOG)  # from now on clients may connect
    logger.info(f"listening at {url_of(listener)}")
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        _run_here(server, listener)
    else:
        _run_in_thread(server, listener)


def _run_here(server: uvicorn.Server, listener: socket.socket) -> None:
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after the last answer
        server.run(sockets=[listener])


def _run_in_thread(server: uvicorn.Server, listener: socket.socket) -> None:
    """Runs a server in a thread, and waits for its end. Ctrl-C or a notebook's stop button ends it."""
    signals: list[int] = []

    def end(number: int, frame: object) -> None:
        signals.append(number)
        server.should_exit = True

    thread = threading.Thread(target=_run_here, args=(server, listener), name="ppxcls-server")
    is_main_thread = threading.current_thread() is threading.main_thread()
    handled_signals = (signal.SIGINT, signal.SIGTERM) if is_main_thread else ()
    # asyncio's own handler of Ctrl-C would only cancel the task that waits here.
    old_handlers = {number: signal.signal(number, end) for number in handled_signals}
    try:
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
    if signal.SIGTERM in signals:
        signal.raise_signal(signal.SIGTERM)
