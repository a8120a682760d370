"""HTTP application: receives images and answers with JSON; with health, metrics, and a page to try it.

LitServe (0.2.19) provides batching, but its queues are unbounded, and it removes the size limit of a request
body. With Starlette, both take a few lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter as Counted
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ppxcls.data.picture_headers import picture_limits
from ppxcls.deploy.predict import DEFAULT_TOPK, Prediction, Predictor
from ppxcls.serving.answers import answer_to, first_classes
from ppxcls.serving.batching import Batcher, BusyError
from ppxcls.serving.bodies import (
    RIGHT_CALLS,
    RequestError,
    Submission,
    advice,
    content_kind,
    decompressed,
    is_plain,
    read_submission,
    read_topk,
)
from ppxcls.serving.connections import ConnectionBook
from ppxcls.serving.decoders import DecoderPool, SlowDecodeError
from ppxcls.serving.endings import Endings, LastAnswers
from ppxcls.serving.hosts import AllowedHosts, Doorkeeper
from ppxcls.serving.lanes import Lanes
from ppxcls.serving.limits import DEFAULT_LIMITS, OPEN_ACCESS, Access, Limits
from ppxcls.serving.memory import LONG_WAIT_SECONDS, BodyParts, MemoryBudget, Reservation, client_key
from ppxcls.serving.openapi import openapi_document
from ppxcls.system.arrays import Array
from ppxcls.system.environment import usable_cores
from ppxcls.system.json_text import json_text
from ppxcls.system.logs import logger
from ppxcls.system.paths import bounded

_PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
_PROMISES = "<!-- promises -->"  # place in the page for what the answers promise
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src blob:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_STEP_BYTES = 256 << 10  # steps in which a body reserves memory
_LARGE_BODY_BYTES = 1 << 20  # bodies above it are unpacked one after the other


class _Item(NamedTuple):
    """An image that waits for its prediction, and the number of classes to answer with."""

    image: Array
    topk: int | None


class Service:
    """Answers requests with a predictor.

    Args:
        predictor: predictor of a run or of exported files.
        limits: limits of the server.
        decoders: processes that decode the images; None to decode them in this process.
        book: connections of the server; None if something else bounds them.
        proxies: keys of clients that may use all of the limits.
    """

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits,
        *,
        decoders: DecoderPool | None = None,
        book: ConnectionBook | None = None,
        proxies: frozenset[str] = frozenset(),
    ) -> None:
        self._predictor, self._limits = predictor, limits
        self._decoders, self._book = decoders, book
        self._budget = MemoryBudget(limits.memory, proxies, None if book is None else book.end_slow_upload)
        self._lanes = Lanes(decoders.count if decoders else usable_cores() + 1, proxies)
        if decoders:
            decoders.has_waiting = lambda: self._lanes.has_waiting
        self._page = _PAGE.replace(_PROMISES, "<br>".join(predictor.limits.promises.values()))
        self.endings = Endings()
        self._large_bodies = asyncio.Semaphore(1)
        self._decoding_count = 0
        self._client_counts: Counted[str] = Counted()
        self._proxies = proxies
        self.registry = CollectorRegistry()
        self._requests = Counter("ppxcls_requests", "Answers by status", ["status"], registry=self.registry)
        self._seconds = Histogram(
            "ppxcls_request_seconds", "From the request to its answer", registry=self.registry
        )
        sizes = [2**i for i in range(9)]
        self._batches = Histogram(
            "ppxcls_batch_size", "Images in a batch", registry=self.registry, buckets=sizes
        )
        self._add_gauges()
        self._batcher: Batcher[_Item, Prediction] = Batcher(
            self._predict,
            limits.batch,
            wait=limits.wait,
            queue_size=limits.queue,
            on_batch=lambda count, _: self._batches.observe(count),
        )

    def _add_gauges(self) -> None:
        gauges = (
            ("ppxcls_waiting", "Images that wait", lambda: self._waiting_count),
            ("ppxcls_body_bytes", "Bytes of the requests in progress", lambda: self._budget.total),
            ("ppxcls_connections", "Connections", lambda: 0 if self._book is None else len(self._book)),
        )
        for name, description, value in gauges:
            Gauge(name, description, registry=self.registry).set_function(value)

    @property
    def _waiting_count(self) -> int:
        return self._batcher.waiting + self._decoding_count

    def _predict(self, items: Sequence[_Item]) -> list[Prediction]:
        """Predicts a batch with the largest ``topk`` of its images, and cuts each prediction to its own."""
        topk = max(item.topk or DEFAULT_TOPK for item in items)
        predictions = self._predictor.predict_prepared([item.image for item in items], topk)
        return [
            first_classes(prediction, item.topk or DEFAULT_TOPK)
            for prediction, item in zip(predictions, items, strict=True)
        ]

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Runs while the server runs; at the end, it answers the waiting images."""
        watch = None if self._book is None else asyncio.create_task(self._book.watch())
        await self._batcher.start()
        try:
            yield
        finally:
            if self._decoders:
                self._decoders.close()  # by now the requests are answered, or their time is over
            self._lanes.close()
            await self.endings.wait()
            await self._batcher.stop()
            if watch:
                watch.cancel()

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
        client = client_key(request.client.host if request.client else "")
        try:
            if self._waiting_count >= self._limits.queue:  # before the body takes memory
                raise BusyError
            topk = _topk_parameter(request)
            with Reservation(self._budget, client) as reservation:
                return await self._answer_to_body(request, topk, client=client, reservation=reservation)
        except RequestError as error:
            return error.status, {"error": bounded(str(error))}
        except BusyError as error:
            return 503, {"error": str(error) or "too many images are waiting; try again later"}
        except ClientDisconnect:
            return 499, {"error": "the client has disconnected"}
        except (TimeoutError, asyncio.TimeoutError):
            return 504, {"error": f"no answer within {self._limits.seconds:g} s"}
        except Exception as error:
            logger.exception("a prediction failed")
            return 500, {"error": type(error).__name__}

    async def _answer_to_body(
        self, request: Request, topk: int | None, *, client: str, reservation: Reservation
    ) -> tuple[int, dict[str, Any]]:
        content_type = request.headers.get("content-type", "")
        try:
            body = await asyncio.wait_for(self._body(request, reservation), self._limits.connections.body)
        except (TimeoutError, asyncio.TimeoutError):
            raise RequestError(408, f"no body within {self._limits.connections.body:g} s") from None
        note = advice(body, content_type)
        submission = await self._submission(body, request)
        is_raw_body = submission.images[0] is body
        del body
        await reservation.resize(sum(map(len, submission.images)))
        predictions = await asyncio.wait_for(
            self._predictions(submission, topk or submission.topk, client), self._limits.seconds
        )
        answers = [answer_to(prediction) for prediction in predictions]
        if not submission.is_list:
            status, content = answers[0]
            if status == 422 and is_raw_body:
                content["error"] = bounded(content["error"] + note)
            return status, content
        entries = [
            {"file": bounded(name), **entry}
            for name, (_, entry) in zip(submission.names, answers, strict=True)
        ]
        # 200 if there is any prediction: a client sees at each entry which one has failed.
        return min(status for status, _ in answers), {"predictions": entries}

    async def _predictions(self, submission: Submission, topk: int | None, client: str) -> list[Prediction]:
        """Decodes the images of a request, and predicts those that can be decoded."""
        images = submission.images
        # One client may not fill the queue, but each request fits into its part.
        part = max(self._limits.of_body.images, self._limits.queue * 3 // 4)
        is_too_much = client not in self._proxies and self._client_counts[client] + len(images) > part
        if is_too_much or self._waiting_count + len(images) > self._limits.queue:
            raise BusyError
        self._client_counts[client] += len(images)
        try:
            return await self._decoded_predictions(submission, topk, client)
        finally:
            self._client_counts[client] -= len(images)
            if not self._client_counts[client]:
                del self._client_counts[client]

    async def _decoded_predictions(
        self, submission: Submission, topk: int | None, client: str
    ) -> list[Prediction]:
        images = submission.images
        self._decoding_count += len(images)
        try:
            runs = [self._lanes.run(self._prepare, image, client) for image in images]
            results = [await runs[0]] if len(runs) == 1 else await asyncio.gather(*runs)
        finally:
            self._decoding_count -= len(images)
        items = [_Item(result, topk) for result in results if not isinstance(result, str)]
        rows = iter(await self._batcher.answers(items) if items else [])
        return [
            Prediction(name, error=result) if isinstance(result, str) else next(rows)
            for name, result in zip(submission.names, results, strict=True)
        ]

    def _prepare(self, image: bytes) -> Array | str:
        """Returns an image as the predictor takes it, or the reason why it can't be used."""
        try:
            with picture_limits(self._limits.of_picture):
                if self._decoders and self._predictor.decodes_images:
                    return self._predictor.prepare(self._decoders.decode(image))
                return self._predictor.prepare(image)
        except SlowDecodeError as error:
            raise BusyError(str(error)) from None
        except (ValueError, OSError, MemoryError) as error:
            return bounded(" ".join(str(error).split())) or "not enough memory"

    async def _submission(self, body: bytes, request: Request) -> Submission:
        """Finds the images of a body, in a thread, because a large body may take long to unpack."""
        content_type = request.headers.get("content-type", "")
        encoding = request.headers.get("content-encoding", "")
        limits = self._limits.of_body
        max_size = limits.wire_size(content_kind(content_type))

        def find_images() -> Submission:
            try:
                plain_body = decompressed(body, encoding, max_size)
            except OverflowError:
                raise limits.too_large() from None
            return read_submission(plain_body, content_type, limits)

        is_packed = encoding.strip().lower() not in ("", "identity")
        if not is_packed and is_plain(body, content_type):
            return find_images()
        needs_turn = is_packed or len(body) > _LARGE_BODY_BYTES
        loop = asyncio.get_running_loop()
        async with self._large_bodies if needs_turn else contextlib.nullcontext():
            return await loop.run_in_executor(None, find_images)

    async def _body(self, request: Request, reservation: Reservation) -> bytes:
        limits = self._limits.of_body
        max_size = limits.wire_size(content_kind(request.headers.get("content-type", "")))
        length = request.headers.get("content-length", "0")
        stated_size = int(length[:20]) if length.isdigit() else 0
        if stated_size > max_size:
            raise limits.too_large()
        # Without the room for the whole body, many bodies would grow side by side until none could end.
        await reservation.resize(stated_size, LONG_WAIT_SECONDS)
        parts = BodyParts(max_size)
        size, reserved_size = 0, stated_size
        try:
            async for part in request.stream():  # the length may be missing or wrong
                size += len(part)
                if size > max_size:
                    raise limits.too_large()
                if size > reserved_size:
                    reserved_size = -(-size // _STEP_BYTES) * _STEP_BYTES
                    await reservation.resize(reserved_size)
                parts.append(part)
            return parts.join()
        finally:
            parts.close()

    async def health(self, request: Request) -> Response:
        """Answers ``GET /healthz``. It says nothing about the machine."""
        model = bounded(self._predictor.model.replace("\\", "/").rpartition("/")[2])
        return JSONResponse({"status": "ok", "model": model})

    async def metrics(self, request: Request) -> Response:
        """Answers ``GET /metrics``, in Prometheus's text format."""
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        """Answers ``GET /`` with a page to drop images on."""
        return HTMLResponse(self._page, headers=_HEADERS)


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


async def _http_error(request: Request, error: Exception) -> Response:
    """Answers an unknown path or method with JSON that names the right call."""
    assert isinstance(error, HTTPException)
    place = f"{request.method[:20]} {request.scope['path'][:100]}"
    message = f"{error.detail}: {place}; POST an image to /predict: {RIGHT_CALLS}"
    return JSONResponse({"error": bounded(message)}, error.status_code, headers=error.headers)


def build_app(
    predictor: Predictor,
    limits: Limits = DEFAULT_LIMITS,
    *,
    access: Access = OPEN_ACCESS,
    hosts: AllowedHosts | None = None,
    decoders: DecoderPool | None = None,
    book: ConnectionBook | None = None,
) -> Starlette:
    """Returns the ASGI application of a predictor.

    Args:
        predictor: predictor of a run or of exported files.
        limits: limits of the server.
        access: clients and web pages that may use the server.
        hosts: names under which it answers; None for all.
        decoders: processes that decode the images; None to decode them in this process.
        book: connections of the server; None if something else bounds them.
    """
    service = Service(predictor, limits, decoders=decoders, book=book, proxies=access.proxy_keys)
    document = json_text(openapi_document(limits.of_body, limits.queue, predictor.limits))

    async def openapi(request: Request) -> Response:
        return Response(document, media_type="application/json")

    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/healthz", service.health),
        Route("/metrics", service.metrics),
        Route("/openapi.json", openapi),
        Route("/", service.page),
    ]
    middleware = [
        Middleware(LastAnswers, endings=service.endings),
        Middleware(Doorkeeper, hosts=hosts, origins=access.cors),
    ]
    if access.cors:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(access.cors),
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
