"""A policy that runs in another process or on another machine, behind openpi's websocket protocol.

Every wait has a deadline, every reply is decoded under limits and checked before it is an action. After any
failure of the connection it is closed and stays closed until `reconnect` is called: a robot decides
when to trust a server again. It never retries a request, and holds nothing between requests but the socket.
Only what may pass is waited for: an address that is wrong for good is reported at once. No message holds the
token, nor what follows a `?` in the address.
"""

import contextlib
import json
import logging
import socket
import ssl
import struct
import time
import urllib.parse
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32
from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from policies.serving.access import is_loopback
from policies.serving.contract import PolicyUnavailable, RemoteContract, agreed_contract, stated_contract
from policies.serving.protocols import SEQ_KEY
from policies.serving.wire import DEFAULT_LIMITS, WireError, WireLimits, decode, encode
from vla.interface import DecodeError, Observation, ObservationError
from vla.spec import RobotSpec

CLOSE_TIMEOUT_S = 0.5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0  # between attempts to connect; each is twice the last
PASSING_CODES = ("unreachable", "timeout", "busy")  # refusals that a later attempt may not meet
UNKNOWN_HOST = "unknown_host"  # wrong for good at first; later on the network may be what has gone
BUSY_STATUSES = (429, 502, 503, 504)  # a server, or a proxy before it, that will answer in time
NO_ACTION_CODES = ("no_action", "bad_action")
OUR_FAULT_PREFIXES = ("observation", "image", "state", "instruction", "committed", "missing_key")


class RemotePolicy:
    """A `Policy` over a websocket, for one thread. Made by `open`; a context manager."""

    _logger = logging.getLogger("policies.serving.client")

    def __init__(
        self,
        *,
        url: str,
        token: str | None,
        tls: ssl.SSLContext | None,
        timeout_s: float,
        open_timeout_s: float,
        limits: WireLimits,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._shown_url = _require_address(url, tls)
        self._url, self._token, self._tls = url, token, tls
        if token is not None:
            _require_sendable(token)
            if url.startswith("ws:") and not is_loopback(urllib.parse.urlsplit(url).hostname or ""):
                self._logger.warning(
                    "the token goes to %s in plain text, for all on the network to read; wss:// hides it",
                    self._shown_url,
                )
        self._timeout_s, self._open_timeout_s, self._limits = timeout_s, open_timeout_s, limits
        self._clock, self._sleep = clock, sleep
        self._connection: ClientConnection | None = None
        self._closing = contextlib.ExitStack()  # what closes the connection
        self._contract: RemoteContract | None = None
        self._seq = 0
        self.num_dropped_replies = 0  # late, repeated or replayed ones

    @classmethod
    def open(
        cls,
        url: str,
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 2.0,
        open_timeout_s: float = 5.0,
        within_s: float = 0.0,
        limits: WireLimits = DEFAULT_LIMITS,
        contract: RemoteContract | None = None,
        expected_policy_id: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> "RemotePolicy":
        """Connect to a server and learn, or check, what it serves.

        Args:
            url: ``ws://host:port`` or ``wss://host:port``.
            token: sent as ``Authorization: Api-Key``.
            tls: for ``wss``; None trusts the system's authorities.
            timeout_s: the longest wait for an answer, and for sending a request.
            open_timeout_s: the longest wait for the handshake and the metadata, together.
            within_s: how long to try again, with growing pauses, while nobody answers or the server is busy.
            limits: of the frames that are read.
            contract: required by servers of openpi itself, which tell nothing; otherwise a second opinion.
            expected_policy_id: refuse any other bundle.
            clock: monotonic [s].
            sleep: waits between attempts to reconnect [s].

        Raises:
            PolicyUnavailable: nobody answers, the token is refused, or the server serves something else; at
                once if the address is none, its host unknown, or another program answers there.
            SpecMismatch: the server's policy is for another robot than `contract` says.
        """
        policy = cls(
            url=url,
            token=token,
            tls=tls,
            timeout_s=timeout_s,
            open_timeout_s=open_timeout_s,
            limits=limits,
            clock=clock,
            sleep=sleep,
        )
        stated = policy._connect_within(
            retry_s=within_s, give_up_s=within_s + open_timeout_s, passing=PASSING_CODES
        )
        try:
            policy._contract = agreed_contract(stated, contract, expected_policy_id)
        except (ValueError, PolicyUnavailable):
            policy.close()
            raise
        return policy

    @property
    def contract(self) -> RemoteContract:
        """What was agreed when the connection was first opened."""
        assert self._contract is not None, "made by RemotePolicy.open"
        return self._contract

    @property
    def robot_spec(self) -> RobotSpec:
        """The robot that the policy was trained for."""
        return self.contract.robot_spec

    @property
    def frame_offsets(self) -> tuple[int, ...]:
        """Which frames the policy looks at, in control periods before now, oldest first."""
        return self.contract.frame_offsets

    @property
    def action_horizon(self) -> int:
        """Number of control periods in a predicted chunk."""
        return self.contract.action_horizon

    @property
    def max_committed(self) -> int:
        """How many committed actions an observation may hold."""
        return self.contract.max_committed

    @property
    def connected(self) -> bool:
        """Whether the connection is believed to be open; only an answer proves it."""
        return self._connection is not None

    def predict(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "batch time action"]:
        """Ask for one chunk after the other; each request has its own deadline.

        Raises:
            PolicyUnavailable: no answer in time, a lost connection or a server's trouble. Hold, then stop.
            ObservationError: the server, or this side, found the observation wanting.
            DecodeError: the server had no action chunk, or sent one of another shape or with NaN.
        """
        if not observations:
            raise ObservationError("there are no observations to send")
        return np.stack([self._ask(observation) for observation in observations])

    def reconnect(self, *, within_s: float) -> None:
        """Connect again, with growing pauses between attempts.

        Args:
            within_s: when to give up, in the middle of an attempt too: a server that takes the connection
                and then says nothing costs no more [s].

        Raises:
            PolicyUnavailable: nobody answered `within_s`, or another policy than before is served now.
        """
        self.close()
        stated = self._connect_within(
            retry_s=within_s, give_up_s=within_s, passing=(*PASSING_CODES, UNKNOWN_HOST)
        )
        if stated is not None and stated != self.contract:
            self.close()
            raise PolicyUnavailable(
                "changed", f"{self._shown_url} serves another policy than before; open it anew to accept that"
            )

    def close(self) -> None:
        """Close the connection without waiting for the peer; safe to call more than once."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with contextlib.suppress(OSError):  # it is closed already
            connection.socket.shutdown(socket.SHUT_RDWR)
        self._closing.close()

    def __enter__(self) -> "RemotePolicy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect_within(
        self, *, retry_s: float, give_up_s: float, passing: tuple[str, ...]
    ) -> RemoteContract | None:
        """Try to connect: begin no attempt after `retry_s`, end the last by `give_up_s`.

        Only failures with one of the codes in `passing` are tried again.
        """
        began, pause = self._clock(), FIRST_PAUSE_S
        while True:
            left_s = began + give_up_s - self._clock()
            try:
                return self._connect(max(0.0, min(self._open_timeout_s, left_s)))
            except PolicyUnavailable as error:
                if error.code not in passing or self._clock() + pause > began + retry_s:
                    raise
            self._sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _connect(self, timeout_s: float) -> RemoteContract | None:
        """Open the socket, read the metadata, and return the contract that it states, if any."""
        deadline = time.monotonic() + timeout_s
        logger = logging.getLogger("policies.serving.client.websockets")
        logger.setLevel(logging.WARNING)  # its DEBUG lines hold headers, hence the token
        headers = None if self._token is None else {"Authorization": f"Api-Key {self._token}"}
        try:
            opening = connect(
                self._url,
                ssl=self._tls,
                additional_headers=headers,
                compression=None,
                max_size=self._limits.max_bytes,
                open_timeout=timeout_s,
                close_timeout=CLOSE_TIMEOUT_S,
                ping_interval=None,  # requests have deadlines of their own
                proxy=None,
                logger=logger,
            )
            self._connection = self._closing.enter_context(opening)
            _limit_sending(self._connection.socket, self._timeout_s)
            frame = self._connection.recv(timeout=max(0.0, deadline - time.monotonic()))
        except (OSError, WebSocketException, AssertionError) as error:
            # TimeoutError and ssl.SSLError are OSErrors; websockets 17.4 asserts in its handshake when a peer
            # resets the connection while the request is sent.
            self.close()
            raise _unreachable(self._shown_url, error) from error
        try:
            if isinstance(frame, str):
                raise WireError("text_frame", "the greeting is a text frame")
            return stated_contract(decode(frame, limits=self._limits))
        except ValueError as error:
            self.close()
            raise PolicyUnavailable(
                "greeting", f"{self._shown_url} is no policy server that this client understands: {error}"
            ) from error

    def _ask(self, observation: Observation) -> Float32[np.ndarray, "time action"]:
        message = self.contract.observation_map.to_request(observation)
        if self.contract.numbered:
            self._seq += 1
            message[SEQ_KEY] = self._seq
        deadline = self._clock() + self._timeout_s
        frame = encode(message)
        connection = self._connection
        if connection is None:
            raise PolicyUnavailable(
                "closed", f"the connection to {self._shown_url} is closed; call reconnect"
            )
        try:
            connection.send(frame)
            return self._await_answer(connection, deadline)
        except (OSError, WebSocketException, WireError) as error:
            self.close()
            raise _lost(self._shown_url, error, self._timeout_s) from error

    def _await_answer(
        self, connection: ClientConnection, deadline: float
    ) -> Float32[np.ndarray, "time action"]:
        """Return the chunk that answers the last request; drop frames that answer others."""
        while True:
            remaining = deadline - self._clock()
            if remaining <= 0:
                raise TimeoutError
            frame = connection.recv(timeout=remaining)
            if isinstance(frame, str):
                seq, error = _error_of(frame)
                if seq is None or seq == self._seq:
                    raise error
            else:
                reply = decode(frame, limits=self._limits)
                if not self.contract.numbered or reply.get(SEQ_KEY) == self._seq:
                    return self._checked(reply.get("actions"))
            self.num_dropped_replies += 1

    def _checked(self, actions: Any) -> Float32[np.ndarray, "time action"]:
        expected = (self.action_horizon, len(self.robot_spec.action))
        if not isinstance(actions, np.ndarray) or actions.dtype.kind != "f" or actions.shape != expected:
            found = f"{actions.dtype}{list(actions.shape)}" if isinstance(actions, np.ndarray) else "none"
            raise DecodeError(f"the server's actions are {found}; float32{list(expected)} was agreed. Hold")
        with np.errstate(over="ignore"):
            actions = actions.astype(np.float32)
        if not np.isfinite(actions).all():
            raise DecodeError("the server's actions hold NaN or an infinity. Hold")
        return actions


def _limit_sending(connection: socket.socket, seconds: float) -> None:
    """Let a send fail when the peer has not read for `seconds`: a stopped server fills the buffers."""
    whole = int(seconds)
    timeval = struct.pack("@ll", whole, max(1, int((seconds - whole) * 1e6)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


def _require_address(url: str, tls: ssl.SSLContext | None) -> str:
    """Return an address as messages may show it: without user, password and what follows a `?`.

    Raises:
        PolicyUnavailable: it is no address of a websocket server; the message holds one that may be meant.
    """
    parts = urllib.parse.urlsplit(url if "//" in url else f"//{url}")
    shown = urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    try:
        port = parts.port
    except ValueError as error:
        raise PolicyUnavailable("address", f"no connection to {shown!r}: {error}") from error
    host, likely = parts.hostname, "wss" if parts.scheme in ("https", "wss") else "ws"
    if parts.scheme not in ("ws", "wss") or not host:
        meant = f"{likely}://{host or 'host'}:{port or 'port'}"
        raise PolicyUnavailable(
            "address", f"{shown!r} is no address of a policy server: write {meant} (wss:// with TLS)"
        )
    if tls is not None and parts.scheme == "ws":
        raise PolicyUnavailable("address", f"{shown!r} is without TLS although TLS is wanted: write wss://")
    return shown


def _require_sendable(token: str) -> None:
    """Raise `PolicyUnavailable`, which never holds the token, if no header can carry it."""
    if not token or not token.isascii() or not token.isprintable():
        raise PolicyUnavailable(
            "token",
            f"the token ({len(token)} characters) is empty, or holds a line break or a character outside "
            "ASCII, which no request can carry; look at the variable or file that it comes from",
        )


def _unreachable(url: str, error: Exception) -> PolicyUnavailable:
    """Return why there is no connection; the code tells whether a later attempt may fare better."""
    code, reason = "unreachable", str(error) or "the connection ended at once"
    if isinstance(error, InvalidStatus):
        code, reason = _refused(error.response.status_code)
    elif isinstance(error, TimeoutError):
        code, reason = "timeout", "no answer in time"
    elif isinstance(error, socket.gaierror):
        if error.errno != socket.EAI_AGAIN:
            code = UNKNOWN_HOST
        reason = f"its host cannot be found ({error.strerror})"
    elif isinstance(error, ssl.SSLCertVerificationError):
        code = "certificate"
    elif isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        code, reason = "tls", "the server there speaks no TLS; ws:// is without"
    elif isinstance(error, InvalidHandshake) and not isinstance(error.__cause__, EOFError):
        code, reason = "not_a_server", f"another program answers there ({error})"
    return PolicyUnavailable(code, f"no connection to {url}: {reason}")


def _refused(status: int) -> tuple[str, str]:
    """Return code and reason of an HTTP status that is no welcome."""
    if status == 401:
        return "token", "it refuses the token"
    if status == 403:
        return "refused", "it refuses this client"
    if status in BUSY_STATUSES:
        return "busy", f"it answers with status {status}: loading, or full"
    return "not_a_server", f"it answers with status {status}: another program, or another path"


def _lost(url: str, error: Exception, timeout_s: float) -> PolicyUnavailable:
    if isinstance(error, TimeoutError):
        return PolicyUnavailable("timeout", f"no answer from {url} within {timeout_s:g} s; connection closed")
    if isinstance(error, WireError):
        return PolicyUnavailable("bad_reply", f"{url} sent a reply that breaks the wire's rules: {error}")
    return PolicyUnavailable("lost", f"the connection to {url} is lost: {error}")


def _error_of(frame: str) -> tuple[int | None, Exception]:
    """Return which request an error frame is about, None if it does not say, and the error to be raised."""
    code, text, seq = "server", frame, None
    try:
        content = json.loads(frame)
        code, text = str(content["error"]["code"]), str(content["error"]["message"])
        seq = content.get(SEQ_KEY)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # openpi's own server sends a traceback
    text = ascii(text[:400])
    if code in NO_ACTION_CODES:
        return seq, DecodeError(f"the server has no action: {text}. Hold")
    if code.startswith(OUR_FAULT_PREFIXES):
        return seq, ObservationError(f"the server refuses the observation ({code}): {text}")
    return seq, PolicyUnavailable(code[:40], f"the server answers with an error ({code[:40]}): {text}")
