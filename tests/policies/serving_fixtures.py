"""A fake policy, a server in a thread of its own, and raw clients for the tests of server and client."""

import asyncio
import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request

import numpy as np
from websockets.sync.client import connect

from policies.serving.access import Access
from policies.serving.client import RemotePolicy
from policies.serving.server import PolicyServer, ServedPolicy, ServerSettings
from policies.serving.session import SessionSettings
from policies.serving.wire import decode, encode
from vla.interface import Observation
from vla.spec import CameraSpec, Channel, RobotSpec

HORIZON = 4
WAIT_S = 60.0  # the longest that a test waits for anything
TOKEN = "correct horse battery staple"


def arm_spec(**changes):
    fields = {
        "name": "arm",
        "cameras": (CameraSpec(name="front", height=8, width=10),),
        "state": (
            Channel(name="x", unit="m", low=-1.0, high=1.0),
            Channel(name="opening", unit="1", low=0.0, high=1.0),
        ),
        "action": (
            Channel(name="dx", unit="m", low=-1.0, high=1.0),
            Channel(name="gripper", unit="1", low=0.0, high=1.0),
        ),
        "control_hz": 20.0,
        "action_convention": "end_effector_delta",
        "gripper_sign": "positive_opens",
    }
    return RobotSpec(**{**fields, **changes})


class FakePolicy:
    """Answers with the state's first number and the mean of the image, so that answers tell who asked.

    While `gate` is clear it does not return; `entered` is set whenever it is asked.
    """

    def __init__(self, *, frame_offsets=(0,), answer=None):
        self.robot_spec, self.frame_offsets, self.action_horizon = arm_spec(), frame_offsets, HORIZON
        self.answer = answer
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.seen = []

    def predict(self, observations):
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        self.seen.extend(observations)
        if self.answer is not None:
            return self.answer(observations)
        return np.stack([expected_actions(observation) for observation in observations])


def expected_actions(observation):
    mean = observation.images["front"].mean(dtype=np.float64)
    row = np.array([observation.state[0], mean], dtype=np.float32)
    return np.tile(row, (HORIZON, 1))


def observation_of(number, *, frames=1):
    return Observation(
        images={"front": np.full((frames, 8, 10, 3), number % 256, dtype=np.uint8)},
        state=np.array([number, 0.5], dtype=np.float32),
        instruction="lift the red cube",
        committed=np.zeros((0, 2), dtype=np.float32),
        stamp=0.0,
    )


def message_of(number, **more):
    """The openpi request of `observation_of`."""
    observation = observation_of(number)
    return {
        "observation/front": observation.images["front"][0],
        "observation/state": observation.state,
        "prompt": observation.instruction,
        **more,
    }


def settings(
    *,
    request_timeout_s=WAIT_S,
    idle_timeout_s=WAIT_S,
    send_timeout_s=WAIT_S,
    ping_timeout_s=WAIT_S,
    max_malformed=16,
    **more,
):
    session = SessionSettings(
        request_timeout_s=request_timeout_s,
        idle_timeout_s=idle_timeout_s,
        send_timeout_s=send_timeout_s,
        ping_timeout_s=ping_timeout_s,
        max_malformed=max_malformed,
        malformed_pause_s=0.001,
    )
    return ServerSettings(session=session, **more)


class Running:
    """A server that runs in a thread."""

    def __init__(self, server, scheme="ws"):
        self.server, self.scheme = server, scheme

    @property
    def port(self):
        return self.server.port

    def url(self, path="/"):
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    def connect(self, path="/", **more):
        return connect(self.url(path), compression=None, proxy=None, ping_interval=None, **more)

    @contextlib.contextmanager
    def openpi(self):
        """A raw openpi client after its handshake."""
        with self.connect() as connection:
            yield RawClient(connection)

    def get(self, path, headers=None):
        """Status and body of a plain GET."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers or {})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=WAIT_S) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metrics(self):
        return json.loads(self.get("/metrics")[1])


class RawClient:
    """Sends and receives frames as they are."""

    def __init__(self, connection):
        self.connection = connection
        self.metadata = decode(connection.recv(timeout=WAIT_S))

    def send(self, message):
        self.connection.send(encode(message) if isinstance(message, dict) else message)

    def receive(self):
        """The next reply, or the content of the next error frame."""
        frame = self.connection.recv(timeout=WAIT_S)
        return json.loads(frame) if isinstance(frame, str) else decode(frame)

    def ask(self, message):
        self.send(message)
        return self.receive()

    def error_code(self, message):
        return self.ask(message)["error"]["code"]


@contextlib.contextmanager
def running_server(policy=None, *, access=None, server_settings=None, load=None, wait_ready=True):
    """Run a server on a free loopback port; stop it and pass on its error, if it had one."""
    policy = FakePolicy() if policy is None else policy
    load = load or (lambda: ServedPolicy(policy=policy, policy_id="a" * 64))
    access = access or Access(port=0)
    server = PolicyServer(load=load, access=access, settings=server_settings or settings())
    loop, failures = asyncio.new_event_loop(), []
    ready, stop = threading.Event(), asyncio.Event()

    def work():
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(server.run(stop, on_ready=ready.set))
        except Exception as error:  # noqa: BLE001 - handed to the test below
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        if wait_ready:
            assert ready.wait(WAIT_S)
        if not failures:
            yield Running(server, scheme=access.scheme)
    finally:
        loop.call_soon_threadsafe(stop.set)  # the loop is closed below, so this holds for an ended thread too
        thread.join(WAIT_S)
        assert not thread.is_alive()
        loop.close()
    if failures:
        raise failures[0]


def raw_socket(port):
    return socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)


def opened(running, **more):
    """A client of a running server, which waits long for it."""
    return RemotePolicy.open(running.url(), **{"timeout_s": WAIT_S, "open_timeout_s": WAIT_S} | more)
