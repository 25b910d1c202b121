"""The two languages of the server: what a client's frame means, and how answers and errors are spelled.

openpi: the server greets with one binary frame of metadata; then each binary frame is an observation and is
answered by one binary frame with `actions`, or by a text frame, which clients raise as an error.
vla-eval: every frame is a map of type, payload, seq and timestamp; hello and observation are answered with
the same seq, an error with type `error`.

An instance belongs to one connection.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from policies.serving.observation_map import ObservationMap
from policies.serving.wire import Dialect, WireError, WireLimits, decode, encode

SEQ_KEY = "seq"  # our extension of openpi's request: a number that the reply repeats
RESET_KEY = "reset"  # our extension: true in the first observation of an episode
MAX_SEQ = 2**53
VLA_EVAL_VERSION = 1
SERVER_NAME = "vla-stack"
PROTOCOL_VERSION = 1  # of our metadata and extensions


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """An observation that waits for actions."""

    message: Mapping[str, Any]
    seq: int | None  # as the client numbers it
    received: float  # monotonic clock [s]
    starts_episode: bool = False
    episode: int = 0  # of the connection, counted from 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """A frame that needs no inference: what is to be sent back at once, if anything."""

    reply: bytes | None = None
    starts_episode: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """An error as the peer may know it: never a traceback or a path."""

    code: str
    message: str
    correlation_id: str  # also in the server's log

    def to_json(self) -> dict[str, str]:
        """Return the three texts as a map."""
        return {"code": self.code, "message": self.message, "id": self.correlation_id}


@runtime_checkable  # for the shape checker of the tests
class ServerProtocol(Protocol):
    """How one connection speaks."""

    @property
    def name(self) -> str:
        """Its name, for the log."""
        ...

    @property
    def observation_map(self) -> ObservationMap:
        """Where its messages hold what."""
        ...

    def greeting(self) -> bytes | None:
        """Return what the server says first."""
        ...

    def parse(self, frame: str | bytes, *, received: float) -> Request | Notice:
        """Return what a frame means.

        Raises:
            WireError: it is none of this protocol.
        """
        ...

    def answer(
        self, request: Request, actions: Float32[np.ndarray, "time action"], timing: Mapping[str, float]
    ) -> bytes:
        """Return the frame that answers a request."""
        ...

    def error(self, problem: Problem, *, seq: int | None) -> str | bytes:
        """Return the frame that tells of a problem."""
        ...


def _sequence_number(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= MAX_SEQ:
        raise WireError("seq", f"{SEQ_KEY} is no integer in [0, 2**53]")
    return value


class OpenpiProtocol:
    """The protocol of openpi's policy server and client (openpi-client 0.1.2)."""

    name = "openpi"

    def __init__(
        self, *, observation_map: ObservationMap, metadata: Mapping[str, Any], limits: WireLimits
    ) -> None:
        self.observation_map = observation_map
        self._metadata, self._limits = metadata, limits

    def greeting(self) -> bytes:
        """Return the metadata frame, which clients wait for."""
        return encode(self._metadata)

    def parse(self, frame: str | bytes, *, received: float) -> Request:
        """Return the observation in a frame.

        Raises:
            WireError: it is a text frame, or no map that the wire allows.
        """
        if isinstance(frame, str):
            raise WireError("text_frame", "observations come in binary frames of msgpack")
        message = decode(frame, limits=self._limits)
        return Request(
            message=message,
            seq=_sequence_number(message.get(SEQ_KEY)),
            received=received,
            starts_episode=message.get(RESET_KEY) is True,
        )

    def answer(
        self, request: Request, actions: Float32[np.ndarray, "time action"], timing: Mapping[str, float]
    ) -> bytes:
        """Return `actions` float32[horizon, action] and the timing in milliseconds.

        Clients slice every array along its first axis, one row a control period: nothing else is an array.
        """
        reply: dict[str, Any] = {"actions": actions, "server_timing": dict(timing)}
        if request.seq is not None:
            reply[SEQ_KEY] = request.seq
        return encode(reply)

    def error(self, problem: Problem, *, seq: int | None) -> str:
        """Return a text frame of JSON: error (code, message, id), and seq if the request had one."""
        content: dict[str, Any] = {"error": problem.to_json()}
        if seq is not None:
            content[SEQ_KEY] = seq
        return json.dumps(content)


class VlaEvalProtocol:
    """The protocol of the vla-eval harness (version 1, vla-eval 0.8.0).

    The harness executes one action for each observation, so a chunk is kept and handed out step by step:
    the policy looks again after `execute_horizon` actions, and when an episode starts. With 0 the whole chunk
    is the answer, for benchmarks that know chunks.
    """

    name = "vla-eval"

    def __init__(
        self,
        *,
        observation_map: ObservationMap,
        limits: WireLimits,
        execute_horizon: int,
        model_server: str,
        observation_params: Mapping[str, Any] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.observation_map = observation_map
        self._limits, self._execute_horizon = limits, execute_horizon
        self._model_server, self._wall_clock = model_server, wall_clock
        self._observation_params = observation_params or {}
        self._episode = 0
        self._steps: list[Float32[np.ndarray, " action"]] = []  # of the present chunk, still to be executed

    def greeting(self) -> None:
        """Return nothing: the client speaks first."""

    def parse(self, frame: str | bytes, *, received: float) -> Request | Notice:
        """Return what a message asks for; while a chunk lasts, an observation is answered from it.

        Raises:
            WireError: it is no message of this protocol.
        """
        if isinstance(frame, str):
            raise WireError("text_frame", "messages come in binary frames of msgpack")
        raw = decode(frame, dialect=Dialect.VLA_EVAL, limits=self._limits)
        lacking = [key for key in ("type", "payload", "seq", "timestamp") if key not in raw]
        if lacking or not isinstance(raw["payload"], dict):
            raise WireError(
                "message", f"a message needs type, payload (a map), seq and timestamp; lacks {lacking}"
            )
        kind, payload, seq = raw["type"], raw["payload"], _sequence_number(raw["seq"])
        if kind == "observation":
            if self._steps:
                return Notice(reply=self._spell("action", {"actions": self._steps.pop(0)}, seq))
            return Request(message=payload, seq=seq, received=received, episode=self._episode)
        if kind == "hello":
            return Notice(reply=self._hello(payload, seq))
        if kind in ("episode_start", "episode_end"):
            self._episode += kind == "episode_start"
            self._steps.clear()
            return Notice(starts_episode=kind == "episode_start")
        if kind == "error":
            return Notice()
        raise WireError("message", "type is none of hello, episode_start, observation, episode_end, error")

    def _hello(self, payload: Mapping[str, Any], seq: int | None) -> bytes:
        if payload.get("protocol_version") != VLA_EVAL_VERSION:
            raise WireError("protocol_version", f"this server speaks protocol_version {VLA_EVAL_VERSION}")
        content: dict[str, Any] = {
            "harness_version": SERVER_NAME,
            "protocol_version": VLA_EVAL_VERSION,
            "model_server": self._model_server,
            "capabilities": {},
        }
        if self._observation_params:  # the harness makes them arguments of its benchmark
            content["observation_params"] = dict(self._observation_params)
        return self._spell("hello", content, seq)

    def answer(
        self, request: Request, actions: Float32[np.ndarray, "time action"], timing: Mapping[str, float]
    ) -> bytes:
        """Return the first action and keep the rest, or the whole chunk; with the request's seq."""
        del timing
        if self._execute_horizon:
            if request.episode == self._episode:  # an answer may come when its episode is over
                self._steps = list(actions[1 : self._execute_horizon])
            return self._spell("action", {"actions": actions[0]}, request.seq)
        return self._spell("action", {"actions": actions}, request.seq)

    def error(self, problem: Problem, *, seq: int | None) -> bytes:
        """Return an error message; the connection stays open."""
        content = {
            "error": f"{problem.code}: {problem.message} (id {problem.correlation_id})",
            **problem.to_json(),
        }
        return self._spell("error", content, seq)

    def _spell(self, kind: str, payload: Mapping[str, Any], seq: int | None) -> bytes:
        message = {"type": kind, "payload": payload, "seq": seq or 0, "timestamp": self._wall_clock()}
        return encode(message, dialect=Dialect.VLA_EVAL)
