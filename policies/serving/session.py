"""One connection of the server: reads frames, keeps the newest observation, answers one at a time.

While one request is in inference one more may wait; a newer observation takes its place, and the older is
answered with the error `superseded` (messages beyond a megabyte are read one at a time: intake.py). Every
request has a deadline. What goes wrong is answered with a code and an id that the log has too; the connection
stays usable. Nothing refers to a message any longer than it is used.
"""

import asyncio
import functools
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from policies.serving.intake import MeasuredConnection
from policies.serving.metrics import ServerMetrics
from policies.serving.observation_map import RequestError
from policies.serving.protocols import Notice, Problem, Request, ServerProtocol
from policies.serving.wire import WireError
from policies.serving.worker import InferenceWorker
from vla.errors import VLAError
from vla.interface import DecodeError, ObservationError, Policy
from vla.registry import Range, check_attributes

MAX_MESSAGE_CHARACTERS = 400  # of an error's text
MAX_DOUBLINGS = 5  # of the pause after a malformed frame
PING_EVERY_S = 5.0
MAX_LOGGED_ERRORS = 20  # of one session's wrong requests; all are counted, and our own errors always logged


class BadChunk(VLAError):
    """A policy answered with something that must not reach a robot."""


_SECONDS = Range(0.01, 86400)


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionSettings:
    """Times in seconds, and how much nonsense a client may send."""

    request_timeout_s: Annotated[float, _SECONDS, "from an observation's arrival to its answer"] = 2.0
    idle_timeout_s: Annotated[float, _SECONDS, "between two complete frames of a client"] = 300.0
    send_timeout_s: Annotated[float, _SECONDS, "for a client to read what it is sent"] = 5.0
    max_malformed: Annotated[
        int, Range(1, 10**4), "frames in a row that are no messages; then the connection is closed"
    ] = 16
    ping_timeout_s: Annotated[
        float, _SECONDS, "where one client has the server to itself: for it to answer a ping, or it has died"
    ] = 10.0
    malformed_pause_s: Annotated[
        float, Range(0, 60), "before reading on after such a frame; doubles with each in a row"
    ] = 0.05

    def __post_init__(self) -> None:
        check_attributes(self, where="session")


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """What all sessions share."""

    policy: Policy
    worker: InferenceWorker
    metrics: ServerMetrics
    settings: SessionSettings
    clock: Callable[[], float]  # monotonic [s]
    logger: logging.Logger
    has_pings: bool = False  # whether peers that do not answer pings are cut off


@dataclass(frozen=True, kw_only=True, slots=True)
class _Waiting:
    """A request for inference, and how large its message was, which it refers to."""

    request: Request
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Malformed:
    """Why a message was none; the error itself would refer to the message by its traceback."""

    code: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Inferred:
    """A checked chunk and when its inference started and ended, by the monotonic clock [s]."""

    actions: Float32[np.ndarray, "time action"]
    started: float
    ended: float


class Session:
    """One connection after its handshake; `run` lives as long as it does."""

    def __init__(
        self, *, connection: MeasuredConnection, protocol: ServerProtocol, backend: Backend, name: str
    ) -> None:
        self._connection, self._protocol, self._backend, self._name = connection, protocol, backend, name
        self._waiting: _Waiting | None = None
        self._arrived = asyncio.Event()
        self._previous_total_s: float | None = None
        self._num_errors = 0

    async def run(self) -> None:
        """Greet, then serve until the peer leaves, idles or misbehaves."""
        try:
            greeting = self._protocol.greeting()
            if greeting is not None:
                await self._send(greeting)
            async with asyncio.TaskGroup() as group:
                others = [group.create_task(self._answer_requests())]
                if self._backend.has_pings:
                    others.append(group.create_task(self._ping()))
                await self._read_messages()
                for task in others:
                    task.cancel()
        except* ConnectionClosed:
            pass
        finally:
            await self._connection.drop_rest()

    async def _ping(self) -> None:
        """Cut off a peer that answers no ping: it has died without a word, and others wait for its place."""
        timeout_s = self._backend.settings.ping_timeout_s
        while True:
            await asyncio.sleep(min(PING_EVERY_S, timeout_s))
            try:
                async with asyncio.timeout(timeout_s):
                    await (await self._connection.ping())
            except TimeoutError:
                if not self._connection.is_held_back:  # else its answer may wait behind a large message
                    self._backend.logger.warning("cut off session=%s reason=it answers no ping", self._name)
                    self._connection.transport.abort()
                    return

    async def _read_messages(self) -> None:
        settings, num_malformed = self._backend.settings, 0
        while num_malformed < settings.max_malformed:
            try:
                async with asyncio.timeout(settings.idle_timeout_s):
                    parsed = self._parse(*(await self._connection.receive()))
            except TimeoutError:
                self._backend.logger.info("idle session=%s", self._name)
                await self._connection.close(CloseCode.GOING_AWAY, "idle")
                return
            if isinstance(parsed, _Malformed):
                num_malformed += 1
                await self._send_problem(parsed.code, parsed.text, seq=None)
                pause = settings.malformed_pause_s * 2 ** min(num_malformed - 1, MAX_DOUBLINGS)
                await asyncio.sleep(pause)  # its own messages wait in its socket; nobody else's do
            else:
                num_malformed = 0
                await self._take(parsed)
            del parsed
        self._backend.logger.warning("closed session=%s reason=malformed frames", self._name)
        await self._connection.close(CloseCode.POLICY_VIOLATION, "too many malformed frames")

    def _parse(self, frame: str | bytes, num_bytes: int) -> _Waiting | Notice | _Malformed:
        """Return what a message means. Only a request refers to it afterward; all others are released."""
        try:
            parsed = self._protocol.parse(frame, received=self._backend.clock())
        except WireError as error:
            parsed = _Malformed(code=error.code, text=str(error))
        if isinstance(parsed, Request):
            return _Waiting(request=parsed, num_bytes=num_bytes)
        self._connection.release(num_bytes)
        return parsed

    async def _take(self, parsed: _Waiting | Notice) -> None:
        starts_episode = (parsed if isinstance(parsed, Notice) else parsed.request).starts_episode
        if starts_episode:
            self._backend.metrics.counts["episodes"] += 1
        if isinstance(parsed, Notice):
            if parsed.reply is not None:
                await self._send(parsed.reply)
            return
        self._backend.metrics.counts["received"] += 1
        superseded, self._waiting = self._waiting, parsed
        self._arrived.set()
        if superseded is not None:
            seq = superseded.request.seq
            self._connection.release(superseded.num_bytes)
            del superseded, parsed
            await self._send_problem("superseded", "a newer observation came", seq=seq)

    async def _send(self, frame: str | bytes) -> None:
        """Send, or cut off a client that does not read, which also ends the wait for its frames."""
        try:
            async with asyncio.timeout(self._backend.settings.send_timeout_s):
                await self._connection.send(frame)
        except TimeoutError:
            self._backend.logger.warning("cut off session=%s reason=it does not read", self._name)
            self._connection.transport.abort()

    async def _answer_requests(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            waiting, self._waiting = self._waiting, None
            if waiting is not None:
                num_bytes = waiting.num_bytes
                await self._answer(waiting.request)
                del waiting
                self._connection.release(num_bytes)

    async def _answer(self, request: Request) -> None:
        backend = self._backend
        remaining = request.received + backend.settings.request_timeout_s - backend.clock()
        job = backend.worker.submit(functools.partial(self._infer, request))
        try:
            await asyncio.wait([job.future], timeout=max(0.0, remaining))
            if not job.future.done():
                await self._send_problem(
                    "deadline",
                    f"no answer within {backend.settings.request_timeout_s:g} s",
                    seq=request.seq,
                )
                return
        finally:
            backend.worker.cancel(job)
        error = job.future.exception()
        if error is not None:
            await self._report(error, seq=request.seq)
            return
        await self._send_answer(request, job.future.result())

    async def _send_answer(self, request: Request, inferred: Inferred) -> None:
        timing = {
            "infer_ms": (inferred.ended - inferred.started) * 1e3,
            "queue_ms": (inferred.started - request.received) * 1e3,
        }
        if self._previous_total_s is not None:
            timing["prev_total_ms"] = self._previous_total_s * 1e3
        await self._send(self._protocol.answer(request, inferred.actions, timing))
        self._previous_total_s = self._backend.clock() - request.received
        self._backend.metrics.answer(
            request_s=self._previous_total_s,
            queue_s=inferred.started - request.received,
            inference_s=inferred.ended - inferred.started,
        )

    def _infer(self, request: Request) -> Inferred:
        """Map, predict and check; the worker's thread runs this."""
        started, policy = self._backend.clock(), self._backend.policy
        observation = self._protocol.observation_map.to_observation(
            request.message,
            spec=policy.robot_spec,
            frame_offsets=policy.frame_offsets,
            stamp=request.received,
        )
        actions = checked_chunk(policy, policy.predict([observation]))
        return Inferred(actions=actions, started=started, ended=self._backend.clock())

    async def _report(self, error: BaseException, *, seq: int | None) -> None:
        """Tell the peer of an error: in words if the request was wrong, by its id alone if we were."""
        match error:
            case WireError() | RequestError():
                await self._send_problem(error.code, str(error), seq=seq)
            case ObservationError():
                await self._send_problem("observation", str(error), seq=seq)
            case DecodeError():
                await self._send_problem("no_action", "the policy found no action; hold", seq=seq)
            case BadChunk():
                await self._send_problem("bad_action", str(error), seq=seq)
            case _:
                await self._send_problem("internal", "see the server's log", seq=seq, cause=error)

    async def _send_problem(
        self, code: str, message: str, *, seq: int | None, cause: BaseException | None = None
    ) -> None:
        problem = Problem(
            code=code, message=message[:MAX_MESSAGE_CHARACTERS], correlation_id=secrets.token_hex(6)
        )
        self._backend.metrics.error(code)
        self._num_errors += 1
        if cause is not None or self._num_errors <= MAX_LOGGED_ERRORS:
            line, text = "error session=%s id=%s code=%s: %s", ascii(problem.message)
            self._backend.logger.warning(line, self._name, problem.correlation_id, code, text, exc_info=cause)
        await self._send(self._protocol.error(problem, seq=seq))


def checked_chunk(policy: Policy, chunks: Any) -> Float32[np.ndarray, "time action"]:
    """Return the only chunk of a batch of one.

    Raises:
        BadChunk: it has another shape or dtype than the policy's contract, or holds NaN or an infinity.
    """
    expected = (1, policy.action_horizon, len(policy.robot_spec.action))
    if not isinstance(chunks, np.ndarray) or chunks.dtype != np.float32 or chunks.shape != expected:
        found = (
            f"{chunks.dtype}{list(chunks.shape)}" if isinstance(chunks, np.ndarray) else type(chunks).__name__
        )
        raise BadChunk(f"the policy answered {found} instead of float32{list(expected)}")
    if not np.isfinite(chunks).all():
        raise BadChunk("the policy answered NaN or an infinity")
    return chunks[0]
