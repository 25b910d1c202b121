"""A policy behind a websocket: openpi's protocol on `/`, vla-eval's on `/vla-eval`, health and metrics.

    /healthz  200 while the process lives       /readyz   200 once the policy has proved itself, else 503
    /health   as /readyz, for vla-eval          /metrics  counts and latencies: JSON, or text for Prometheus

Handshakes are screened here: web pages, tokens, numbers of connections, readiness. Inference happens in one
thread for all (`policies.serving.worker`); each connection has its own `policies.serving.session`. Unlike
openpi's own server this one keeps a connection open after an error.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.frames import CloseCode
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from policies.serving.access import Access, Refusal
from policies.serving.intake import Intake, MeasuredConnection
from policies.serving.metrics import ServerMetrics
from policies.serving.observation_map import ObservationMap
from policies.serving.prometheus import CONTENT_TYPE, prometheus_text, wants_text
from policies.serving.protocols import (
    PROTOCOL_VERSION,
    SERVER_NAME,
    OpenpiProtocol,
    ServerProtocol,
    VlaEvalProtocol,
)
from policies.serving.session import Backend, Session, SessionSettings
from policies.serving.wire import DEFAULT_LIMITS, WireLimits
from policies.serving.worker import InferenceWorker
from vla.interface import Policy
from vla.registry import Range, check_attributes
from vla.spec import RobotSpec

OPENPI_PATH, VLA_EVAL_PATH = "/", "/vla-eval"
CLOSE_TIMEOUT_S = 2.0  # for a closing handshake, and for the last inference


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedPolicy:
    """A policy that is ready to answer, and what is known of it."""

    policy: Policy
    policy_id: str  # sha256 of the bundle
    max_committed: int = 0  # how many committed actions an observation may hold
    setting: Mapping[str, Any] | None = None  # that it was trained in, as its bundle keeps it


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """How many may connect, how they are treated, and what the wire may carry."""

    session: Annotated[SessionSettings, "times, and how much nonsense a client may send"] = field(
        default_factory=SessionSettings
    )
    limits: Annotated[WireLimits, "the largest message that is read"] = DEFAULT_LIMITS
    max_connections: Annotated[int, Range(1, 1024), "sessions; 1 makes the first client the only one"] = 16
    max_sockets: Annotated[int, Range(1, 65536), "TCP connections, handshakes included"] = 256
    open_timeout_s: Annotated[float, Range(0.01, 3600), "for TLS, and for the opening handshake"] = 5.0
    vla_eval_execute_horizon: Annotated[
        int, Range(0, 1024), "actions handed out of a chunk; 0 sends the whole chunk"
    ] = 1
    vla_eval_observation_params: Annotated[Mapping[str, Any], "for benchmarks' constructors"] = field(
        default_factory=dict
    )
    openpi_map: Callable[[RobotSpec], ObservationMap] = ObservationMap.openpi
    vla_eval_map: Callable[[RobotSpec], ObservationMap] = ObservationMap.vla_eval

    def __post_init__(self) -> None:
        check_attributes(self, where="server")


class PolicyServer:
    """Serves one policy. `load` is called in the inference thread, while connections are told to wait."""

    def __init__(
        self,
        *,
        load: Callable[[], ServedPolicy],
        access: Access,
        settings: ServerSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics = ServerMetrics()
        self._load, self._access, self._clock = load, access, clock
        self._settings = ServerSettings() if settings is None else settings
        self._worker = InferenceWorker(clock=clock)
        self._logger = logging.getLogger("policies.serving.server")
        self._protocols: Mapping[str, Callable[[], ServerProtocol]] = {}
        self._backend: Backend | None = None
        self._started = clock()
        self.served: ServedPolicy | None = None  # once loaded
        self.port: int | None = None  # once listening

    async def run(self, stop: asyncio.Event, *, on_ready: Callable[[], None] = lambda: None) -> None:
        """Listen, load the policy, call `on_ready`, and serve until `stop` is set.

        Raises:
            OSError: the address cannot be listened on.
            ValueError: the observation map does not fit the policy; or whatever `load` raises.
        """
        frames_logger = logging.getLogger("policies.serving.server.websockets")
        frames_logger.setLevel(logging.WARNING)  # its DEBUG lines hold headers, hence tokens
        self._worker.start()
        try:
            async with serve(
                self._handle,
                self._access.host,
                self._access.port,
                ssl=self._access.tls,
                process_request=self._screen,
                compression=None,
                server_header=None,
                max_size=self._settings.limits.max_bytes,
                max_queue=None,  # intake.py bounds what is held
                ping_interval=None,  # benchmarks block for minutes: sessions decide whether to ping
                open_timeout=self._settings.open_timeout_s,
                close_timeout=CLOSE_TIMEOUT_S,
                logger=frames_logger,
                create_connection=Intake(max_sockets=self._settings.max_sockets).connection_class(),
            ) as server:
                self.port = _port(server)
                if await self._prepare(stop):
                    on_ready()
                    await stop.wait()
        finally:
            self._backend = None
            if not self._worker.close(timeout_s=CLOSE_TIMEOUT_S):
                self._logger.warning("the last inference did not end; leaving without it")

    async def _prepare(self, stop: asyncio.Event) -> bool:
        """Load the policy; false if `stop` came first."""
        job = self._worker.submit(self._load)
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([job.future, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if not job.future.done():
            self._worker.cancel(job)
            return False
        served = job.future.result()
        self._protocols = self._speakers(served)
        self.served = served
        self._backend = Backend(
            policy=served.policy,
            worker=self._worker,
            metrics=self.metrics,
            settings=self._settings.session,
            clock=self._clock,
            logger=self._logger,
            has_pings=self._settings.max_connections == 1,
        )
        self._logger.info("ready policy=%s", served.policy_id)
        return not stop.is_set()

    def _speakers(self, served: ServedPolicy) -> Mapping[str, Callable[[], ServerProtocol]]:
        """Return by path how a connection's protocol is made."""
        settings, policy = self._settings, served.policy
        spec = policy.robot_spec
        openpi_map, vla_eval_map = settings.openpi_map(spec), settings.vla_eval_map(spec)
        openpi_map.require_fitting(spec, name="openpi_map")
        vla_eval_map.require_fitting(spec, name="vla_eval_map")
        if not 0 <= settings.vla_eval_execute_horizon <= policy.action_horizon:
            raise ValueError(
                f"vla_eval_execute_horizon is {settings.vla_eval_execute_horizon}; the policy predicts "
                f"{policy.action_horizon} actions at a time (0 sends them all)"
            )
        metadata = server_metadata(served, observation_map=openpi_map, settings=settings)

        def openpi() -> ServerProtocol:
            return OpenpiProtocol(observation_map=openpi_map, metadata=metadata, limits=settings.limits)

        def vla_eval() -> ServerProtocol:
            return VlaEvalProtocol(
                observation_map=vla_eval_map,
                limits=settings.limits,
                execute_horizon=settings.vla_eval_execute_horizon,
                model_server=f"{SERVER_NAME} {served.policy_id[:12]}",
                observation_params=settings.vla_eval_observation_params,
            )

        return {OPENPI_PATH: openpi, VLA_EVAL_PATH: vla_eval}

    def _screen(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Answer plain requests and refuse connections, before anything of a client is decoded."""
        path = request.path.partition("?")[0]  # never log what follows: people put tokens there
        if refusal := self._access.check_origin(request.headers):
            return self._refuse(connection, refusal, path)
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if path in ("/readyz", "/health"):
            return self._respond_ready(connection, as_json=path == "/health")
        if refusal := self._access.check_token(request.headers):
            return self._refuse(connection, refusal, path)
        if path == "/metrics":
            return self._respond_metrics(connection, request)
        if path not in (OPENPI_PATH, VLA_EVAL_PATH):
            return self._refuse(connection, Refusal(status=HTTPStatus.NOT_FOUND, reason="path"), path)
        if self._backend is None:
            return self._refuse(
                connection, Refusal(status=HTTPStatus.SERVICE_UNAVAILABLE, reason="loading"), path
            )
        if self.metrics.connections_open >= self._settings.max_connections:
            return self._refuse(
                connection, Refusal(status=HTTPStatus.SERVICE_UNAVAILABLE, reason="full"), path
            )
        return None

    def _refuse(self, connection: ServerConnection, refusal: Refusal, path: str) -> Response:
        self.metrics.refuse(refusal.reason)
        self._logger.warning(
            "refused peer=%s path=%s reason=%s", _peer(connection), ascii(path[:80]), refusal.reason
        )
        response = connection.respond(refusal.status, f"refused: {refusal.reason}\n")
        if refusal.status is HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Api-Key"
        return response

    def _not_ready_because(self) -> str | None:
        if self._backend is None:
            return "loading"
        stuck = self._worker.busy_for_s() > self._settings.session.request_timeout_s
        return "inference takes longer than the deadline" if stuck else None

    def _respond_ready(self, connection: ServerConnection, *, as_json: bool) -> Response:
        obstacle = self._not_ready_because()
        status = HTTPStatus.OK if obstacle is None else HTTPStatus.SERVICE_UNAVAILABLE
        if as_json:
            return _respond_json(connection, status, {"status": "ok" if obstacle is None else obstacle})
        return connection.respond(status, "OK\n" if obstacle is None else f"{obstacle}\n")

    def _respond_metrics(self, connection: ServerConnection, request: HttpRequest) -> Response:
        policy_id = None if self.served is None else self.served.policy_id
        is_ready, uptime_s = self._not_ready_because() is None, round(self._clock() - self._started, 3)
        if wants_text(request.headers.get_all("Accept")):
            text = prometheus_text(self.metrics, policy_id=policy_id, is_ready=is_ready, uptime_s=uptime_s)
            return _respond(connection, HTTPStatus.OK, text, content_type=CONTENT_TYPE)
        about = {"policy_id": policy_id, "ready": is_ready, "uptime_s": uptime_s}
        return _respond_json(connection, HTTPStatus.OK, {**about, **self.metrics.to_json()})

    async def _handle(self, connection: ServerConnection) -> None:
        backend, request = self._backend, connection.request
        if (
            backend is None
            or request is None
            or self.metrics.connections_open >= self._settings.max_connections
        ):
            await connection.close(CloseCode.TRY_AGAIN_LATER, "full")
            return
        assert isinstance(connection, MeasuredConnection), "made by Intake"
        protocol, name = self._protocols[request.path.partition("?")[0]](), secrets.token_hex(4)
        self.metrics.connections_open += 1
        self.metrics.counts["accepted"] += 1
        self._logger.info("connect session=%s peer=%s protocol=%s", name, _peer(connection), protocol.name)
        try:
            await Session(connection=connection, protocol=protocol, backend=backend, name=name).run()
        finally:
            self.metrics.connections_open -= 1
            self._logger.info("disconnect session=%s", name)


def server_metadata(
    served: ServedPolicy, *, observation_map: ObservationMap, settings: ServerSettings
) -> dict[str, Any]:
    """Return what the server tells every openpi client first: enough to build requests and use the answer."""
    policy, spec = served.policy, served.policy.robot_spec
    return {
        "server": SERVER_NAME,
        "protocol_version": PROTOCOL_VERSION,
        "bundle_sha256": served.policy_id,
        "action_dim": len(spec.action),
        "action_horizon": policy.action_horizon,
        "control_hz": spec.control_hz,
        "action_semantics": {
            "convention": spec.action_convention,
            "gripper_sign": spec.gripper_sign,
            "names": list(spec.action_names),
            "units": [channel.unit for channel in spec.action],
        },
        "frame_offsets": list(policy.frame_offsets),
        "max_committed": served.max_committed,
        "observation_map": observation_map.to_json(),
        "robot_spec": spec.to_json(),
        "max_bytes": settings.limits.max_bytes,
        "request_timeout_s": settings.session.request_timeout_s,
        "setting": served.setting,
    }


def _respond_json(connection: ServerConnection, status: HTTPStatus, content: Any) -> Response:
    return _respond(connection, status, json.dumps(content) + "\n", content_type="application/json")


def _respond(connection: ServerConnection, status: HTTPStatus, text: str, *, content_type: str) -> Response:
    response = connection.respond(status, text)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = content_type
    return response


def _port(server: Server) -> int:
    return next(iter(server.sockets)).getsockname()[1]


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return "unknown" if address is None else f"{address[0]}:{address[1]}"
