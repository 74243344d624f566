"""A desk behind HTTP, by Ray Serve: who may wait, for how long, and what is said to those who may not.

    POST /predict             the body is a video; with ?path=, a file below the operator's root is
                              -> the lines that jobs/predict.py --to writes, `video` as it was named
    GET /health               -> 200 where a video could be answered now, else 503

Whatever is refused gets one line of JSON, {"error": reason}. Serve itself bounds neither how long a request waits nor
how much of a body is read ahead of it, so every request comes in at once, and is refused here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol

from ray import serve
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from finepseudo.errors import ClusterError, FinePseudoError
from finepseudo.runtime.incoming import Limits, RefusalError, fetch, receive

log = logging.getLogger("finepseudo")

__all__ = ["Limits", "deployed", "serving"]

NAME = "finepseudo"  # of the application
SPARE = 64  # requests beyond those that may wait: each comes in, and is told so
FENCE_S = 15.0  # after which Serve itself ends a request whose limit has passed
HEALTH_S = 10.0  # for the decoding process to read a video of a moment
START_S = 600.0  # for replicas to find a place, and to load
POLL_S = 0.5


class Desk(Protocol):
    """What answers: one call at a time. What lies in its folder is deleted at its end, or at another's start."""

    folder: str

    def answer(self, file: str, ends: float) -> list[dict[str, Any]]: ...
    def check(self) -> None: ...
    def about(self) -> dict[str, Any]: ...


class Counter:
    """Stands before one desk."""

    def __init__(self, make: Callable[[], Desk], limits: Limits) -> None:
        logging.getLogger("finepseudo").setLevel(logging.WARNING)
        self._desk, self._limits = make(), limits
        self._free = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1)
        self._inside, self._ends = 0, 0.0

    async def __call__(self, request: Request) -> Response:
        route = (request.method, request.url.path)
        if route == ("GET", "/health"):
            return await self._health()
        if route != ("POST", "/predict"):
            return _refused(404, f"{route[0]} {route[1]}: expected POST /predict or GET /health")
        if self._inside > self._limits.waiting:
            return _refused(503, f"busy: {self._inside} requests are here, as many as may be; try again")
        self._inside += 1
        try:
            return await self._answer(request, time.monotonic() + self._limits.seconds)
        except RefusalError as refusal:
            return _refused(refusal.status, refusal.reason)
        except ClientDisconnect:
            return _refused(400, "the connection ended before the video did")
        except FinePseudoError as error:
            log.warning("not answered: %s", error)
            return _refused(500, f"not answered: {type(error).__name__}; the server's log says more")
        finally:
            self._inside -= 1

    async def check_health(self) -> None:
        """Serve replaces a replica of which this raises."""
        if self._free.locked():
            over_s = time.monotonic() - self._ends
            if over_s > FENCE_S:
                raise RuntimeError(f"a video takes {over_s:.0f} s longer than it may")
            return
        async with self._free:
            await asyncio.wait_for(self._call(self._desk.check), HEALTH_S)

    async def _health(self) -> Response:
        try:
            await self.check_health()
        except (FinePseudoError, RuntimeError, TimeoutError) as error:
            return _refused(503, f"not healthy: {error or 'the decoding process does not answer'}")
        return _line(200, {"status": "ok", "inside": self._inside, **self._desk.about()})

    async def _answer(self, request: Request, ends: float) -> Response:
        folder, path = tempfile.mkdtemp(dir=self._desk.folder), request.query_params.get("path")
        file, kept = f"{folder}/video", True
        try:
            async with _until(ends, 408, "the video did not come"):
                if path is None:
                    await receive(request, file, self._limits)
                else:
                    await asyncio.to_thread(fetch, path, file, self._limits, ends)
            async with _until(ends, 503, "busy: its turn did not come"):
                await self._free.acquire()
            self._ends, kept = ends, False

            def done(answered: asyncio.Future[Any]) -> None:  # also where whoever asked is gone by then
                self._free.release()
                answered.exception()
                shutil.rmtree(folder, ignore_errors=True)

            answer = self._call(self._desk.answer, file, ends)
            answer.add_done_callback(done)
            async with _until(ends, 504, "not answered"):
                rows = await asyncio.shield(answer)
        finally:
            if kept:
                shutil.rmtree(folder, ignore_errors=True)
        if all(row["error"] for row in rows):
            raise RefusalError(422, rows[0]["error"])
        return _lines(200, [{**row, "video": path} for row in rows])

    def _call(self, of: Callable[..., Any], *args: object) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._thread, of, *args)


@asynccontextmanager
async def _until(ends: float, status: int, reason: str) -> AsyncIterator[None]:
    """A block that ends by the clock, or is refused."""
    try:
        async with asyncio.timeout_at(ends):  # the loop's clock is the monotonic one
            yield
    except TimeoutError:
        raise RefusalError(status, f"{reason} within the seconds that a request may take") from None


def _line(status: int, body: dict[str, Any]) -> Response:
    return _lines(status, [body])


def _lines(status: int, rows: list[dict[str, Any]]) -> Response:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    headers = {"retry-after": "1"} if status == 503 else {}
    return Response(text, status, headers, media_type="application/json" if len(rows) == 1 else "application/jsonl")


def _refused(status: int, reason: str) -> Response:
    return _line(status, {"error": " ".join(reason.split())})


def deployed(make: Callable[[], Desk], limits: Limits, *, replicas: int, cpus: float) -> Any:
    """The application: so many replicas, each with a desk of its own."""
    asked: Any = serve.deployment(
        Counter,
        name="classifier",
        num_replicas=replicas,
        max_ongoing_requests=1 + limits.waiting + SPARE,
        max_queued_requests=SPARE,
        ray_actor_options={"num_cpus": cpus},
        health_check_timeout_s=3 * HEALTH_S,
        graceful_shutdown_timeout_s=limits.seconds,
    )
    return asked.bind(make, limits)


def serving(application: Any, host: str, port: int, seconds: float) -> Callable[[float], None]:
    """Start an application on the connected cluster, and wait until it answers; what ends it, given seconds for that.

    Raises ClusterError: it does not start; its replicas' reason is told.
    """
    serve.start("HeadOnly", {"host": host, "port": port, "request_timeout_s": seconds + FENCE_S})
    target = serve.RunTarget(application, name=NAME, route_prefix="/")
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    ends = time.monotonic() + START_S
    while (found := serve.status().applications.get(NAME)) is None or found.status != "RUNNING":
        told = _told(found)
        # Serve makes replicas anew that are unhealthy, and says so where it gives up.
        if time.monotonic() > ends or (found and found.status == "DEPLOY_FAILED"):
            serve.shutdown()
            raise ClusterError(f"the classifier is not served: {told or f'nothing within {START_S:g} s'}")
        time.sleep(POLL_S)
    return lambda _: serve.shutdown()


def _told(found: Any) -> str:
    if found is None:
        return ""
    reasons = [found.message, *(each.message for each in found.deployments.values())]
    return " ".join(" ".join(reason.split()) for reason in reasons if reason)[-600:]
