"""What the policy server adds to a policy: round trips of one 224 px image on loopback, by the real protocol.

The policy answers at once, so all that is measured is the server, the client and the wire between them. The
server runs in a process of its own. Next to it: as many bytes there and back over a bare socket.
"""

import asyncio
import contextlib
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

import numpy as np
from jaxtyping import Float32
from websockets.sync.client import connect

from experiments.benchmarks.measure import Row
from policies.serving.access import Access
from policies.serving.client import RemotePolicy
from policies.serving.server import PolicyServer, ServedPolicy
from policies.serving.wire import decode, encode
from vla.interface import Observation
from vla.spec import CameraSpec, Channel, RobotSpec

IMAGE_SIZE, HORIZON, NUM_ACTIONS = 224, 20, 7
WARM_UP = 50
SPEC = RobotSpec(
    name="benchmark_arm",
    cameras=(CameraSpec(name="front", height=IMAGE_SIZE, width=IMAGE_SIZE),),
    state=tuple(Channel(name=f"joint_{i}", unit="rad", low=-3.0, high=3.0) for i in range(NUM_ACTIONS)),
    action=tuple(Channel(name=f"target_{i}", unit="rad", low=-3.0, high=3.0) for i in range(NUM_ACTIONS)),
    control_hz=20.0,
    action_convention="joint_target",
    gripper_sign="none",
)


class InstantPolicy:
    """Answers every observation with the same chunk."""

    robot_spec = SPEC
    frame_offsets = (0,)
    action_horizon = HORIZON

    def predict(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "batch time action"]:
        """Return the chunk."""
        return np.full((len(observations), HORIZON, NUM_ACTIONS), 0.5, np.float32)


def measure(*, repeats: int) -> list[Row]:
    """Return the table; `repeats` times 50 round trips are timed."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    state = np.zeros(NUM_ACTIONS, np.float32)
    observation = Observation(
        images={"front": image[None]},
        state=state,
        instruction="lift the red cube",
        committed=np.zeros((0, NUM_ACTIONS), np.float32),
        stamp=0.0,
    )
    message = encode({"observation/front": image, "observation/state": state, "prompt": "lift the red cube"})
    with _server() as port:
        url = f"ws://127.0.0.1:{port}/"
        with RemotePolicy.open(url, timeout_s=10.0) as remote:
            times = _times_ms(lambda: remote.predict([observation]), 50 * repeats)
        reply = _reply(url, message)
    with _echo(len(message), len(reply)) as ask:
        bare = _times_ms(lambda: ask(message), 50 * repeats)
    note = f"99th percentile {np.quantile(times, 0.99):.2f} ms of {len(times)}; aim: at most 2"
    bytes_both = f"{len(message)} bytes there, {len(reply)} back over a bare socket"
    return [
        Row(
            name="server's overhead, 224 px image, median",
            value=float(np.median(times)),
            unit="ms",
            limit=float(np.median(bare)),
            limit_name=bytes_both,
            note=note,
        ),
        Row(
            name="request", value=len(message) / 1e3, unit="kB", limit=image.nbytes / 1e3, limit_name="image"
        ),
        Row(
            name=f"reply, {HORIZON} x {NUM_ACTIONS} chunk",
            value=float(len(reply)),
            unit="bytes",
            limit=4.0 * HORIZON * NUM_ACTIONS,
            limit_name="its numbers; aim: under 1,000",
        ),
    ]


def _times_ms(work: Callable[[], object], count: int) -> np.ndarray:
    for _ in range(WARM_UP):
        work()
    times = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - started))
    return np.array(times)


def _serve(ready: Connection) -> None:
    async def main() -> None:
        server = PolicyServer(
            load=lambda: ServedPolicy(policy=InstantPolicy(), policy_id="0" * 64), access=Access(port=0)
        )
        await server.run(asyncio.Event(), on_ready=lambda: ready.send(server.port))

    asyncio.run(main())


@contextlib.contextmanager
def _server() -> Iterator[int]:
    """Run the server in a process of its own and hand out its port."""
    processes = multiprocessing.get_context("spawn")
    here, there = processes.Pipe()
    process = processes.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    try:
        if not here.poll(60.0):
            raise RuntimeError("the policy server was not ready within a minute")
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def _reply(url: str, message: bytes) -> bytes:
    with connect(url, compression=None, proxy=None) as connection:
        connection.recv(timeout=10.0)
        connection.send(message)
        reply = connection.recv(timeout=10.0)
    assert isinstance(reply, bytes), f"the server refused the benchmark's request: {reply}"
    assert decode(reply)["actions"].shape == (HORIZON, NUM_ACTIONS)
    return reply


@contextlib.contextmanager
def _echo(num_there: int, num_back: int) -> Iterator[Callable[[bytes], None]]:
    """Hand out a function that sends bytes over loopback to a thread, which answers with fewer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        served, _ = listener.accept()
    for one in (client, served):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def receive(one: socket.socket, count: int) -> bool:
        left = count
        while left:
            got = len(one.recv(left))
            if not got:
                return False
            left -= got
        return True

    def answer() -> None:
        while receive(served, num_there):
            served.sendall(bytes(num_back))

    def ask(message: bytes) -> None:
        client.sendall(message)
        receive(client, num_back)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield ask
    finally:
        client.close()
        thread.join()
        served.close()
