"""HTTP server: receives images and answers with JSON; with health, metrics, and a page to try it.

LitServe (0.2.19) provides batching, but its queues are unbounded, and it removes the size limit of a request
body. With Starlette, both take a few lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ppxcls.data.errors import DataError
from ppxcls.deploy.build import load
from ppxcls.deploy.predict import Prediction, Predictor
from ppxcls.serving.batching import Batcher, BusyError
from ppxcls.system.logs import logger
from ppxcls.train.predictions import NOT_FINITE

_PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
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
        body: largest size of an image file, in bytes.
        batch: largest number of images in a batch.
        wait: longest time that a batch waits for more images, in seconds.
        queue: largest number of waiting images; more are answered with 503.
        seconds: longest time until an answer, in seconds; after it the answer is 504.
    """

    body: int = 20 << 20
    batch: int = 16
    wait: float = 0.005
    queue: int = 128
    seconds: float = 30.0


class TooLargeError(Exception):
    """The request body has more bytes than are allowed."""


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
        self._batcher: Batcher[bytes, Prediction] = Batcher(
            self._predict,
            limits.batch,
            wait=limits.wait,
            queue_size=limits.queue,
            on_batch=lambda count, _: self._batches.observe(count),
        )

    def _predict(self, images: Sequence[bytes]) -> list[Prediction]:
        return self._predictor.predict(images, batch_size=self._limits.batch)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Runs while the server runs; at the end, it answers the waiting images."""
        await self._batcher.start()
        yield
        await self._batcher.stop()

    async def predict(self, request: Request) -> Response:
        """Answers ``POST /predict`` with JSON; the request body is an image file.

        The JSON contains ``class_ids``, ``scores`` and ``label_names``, the best class first.
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
            body = await asyncio.wait_for(self._body(request), self._limits.seconds)
            if not body:
                return 400, {"error": "expected an image file as the body of the request"}
            prediction = await asyncio.wait_for(self._batcher(body), self._limits.seconds)
        except TooLargeError:
            return 413, {"error": f"the image has more than {self._limits.body:,} bytes"}
        except BusyError:
            return 503, {"error": "too many images are waiting; try again later"}
        except ClientDisconnect:
            return 499, {"error": "the client has disconnected"}
        except (TimeoutError, asyncio.TimeoutError):
            return 504, {"error": f"no answer within {self._limits.seconds:g} s"}
        except Exception as error:
            logger.exception("a batch failed")
            return 500, {"error": type(error).__name__}
        if prediction.error:
            return 500 if prediction.error == NOT_FINITE else 422, {"error": prediction.error}
        return 200, {key: value for key, value in asdict(prediction).items() if key not in ("file", "error")}

    async def _body(self, request: Request) -> bytes:
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._limits.body:
            raise TooLargeError
        parts, size = [], 0
        async for part in request.stream():  # the length may be missing or wrong
            size += len(part)
            if size > self._limits.body:
                raise TooLargeError
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


def build_app(predictor: Predictor, limits: Limits = Limits()) -> Starlette:
    """Returns the ASGI application of a predictor."""
    service = Service(predictor, limits)
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/healthz", service.health),
        Route("/metrics", service.metrics),
        Route("/", service.page),
    ]
    return Starlette(routes=routes, lifespan=service.lifespan)


def run_server(
    path: str | Path, host: str = "127.0.0.1", *, port: int = 8000, batch: int = 16, queue: int = 128
) -> None:
    """Serves a run or an exported model until SIGTERM or SIGINT; requests that have begun are still answered.

    Args:
        path: run or exported model, as for ``ppxcls.load``.
        host: address to listen on. The server has no passwords: use an address of this machine only, or put a
            proxy before the server.
        port: port to listen on.
        batch: largest number of images in a batch.
        queue: largest number of waiting images.

    Raises:
        ConfigError, CheckpointError, DataError: the model can't be used, or a number is below 1.
    """
    if min(batch, queue) < 1:
        raise DataError(f"expected a batch and a queue of at least 1, received {batch} and {queue}")
    predictor = load(path, _UNBOUNDED_IMAGES)
    logger.info(predictor.description)
    predictor.predict(np.zeros((600, 600, 3), np.uint8))  # compiles a run's network before the first request
    app = build_app(predictor, Limits(batch=batch, queue=queue))
    # Each connection may hold a body in memory; above this number uvicorn answers 503 itself.
    max_connections = 2 * queue + batch
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=30,
        limit_concurrency=max_connections,
    )
