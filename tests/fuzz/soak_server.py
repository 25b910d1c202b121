"""Serves four clients for minutes, one of which sends garbage; run by hand, never collected.

    python tests/fuzz/soak_server.py 30        # minutes
    python tests/fuzz/soak_server.py memory    # 16 clients x 4 x 8 MB of garbage, 10 rounds

First a quiet phase of a tenth of the time with the three honest clients alone, then all four. Every honest
answer is compared with what the policy should say. It prints the honest clients' p99 in both phases and the
server's resident memory, and fails on a wrong answer, on memory that grew by more than 5 % in the second
half, or on a p99 beyond twice the quiet one. `memory` fails if the server ever takes 100 MB more than when it
was quiet.
"""

import multiprocessing
import random
import resource
import subprocess
import sys
import threading
import time
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

sys.path.insert(0, str(Path(__file__).parents[1] / "policies"))
from serving_fixtures import expected_actions, observation_of

from policies.serving.client import RemotePolicy

PERIOD_S = 0.05  # an honest client asks at 20 Hz
ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, sys
sys.path.insert(0, "tests/policies")
from serving_fixtures import FakePolicy
from policies.serving.server import PolicyServer, ServedPolicy
from policies.serving.access import Access

class Forgetful(FakePolicy):
    def predict(self, observations):
        answer = super().predict(observations)
        self.seen.clear()
        return answer

async def main():
    server = PolicyServer(
        load=lambda: ServedPolicy(policy=Forgetful(), policy_id="a" * 64), access=Access(port=0)
    )
    await server.run(asyncio.Event(), on_ready=lambda: print(server.port, flush=True))

asyncio.run(main())
"""


def garbage(rng: random.Random) -> bytes | str:
    """One of the bombs of our tests, or noise."""
    return rng.choice(
        [
            b"\x80" * (1 << 20),
            b"\xdd\x00\x10\x00\x00" + b"\x80" * (1 << 20),
            (b"\xdc\x03\xe8" + b"\x80" * 1000) * 8,
            b"\x91" * 10_000,
            b"\xdf\xff\xff\xff\xff",
            rng.randbytes(rng.randrange(1, 100_000)),
            b"\x81\xa1a" + rng.randbytes(200),
            b"\0" * ((8 << 20) + 1),
            "text",
        ]
    )


def attack(url: str, stop: Event, num_answered: Synchronized) -> None:
    """Send garbage until told to stop, in a process of its own; connect again whenever sent away."""
    rng = random.Random(0)
    while not stop.is_set():
        try:
            with connect(url, compression=None, proxy=None, ping_interval=None) as connection:
                connection.recv(timeout=10)
                while not stop.is_set():
                    connection.send(garbage(rng))
                    connection.recv(timeout=10)
                    num_answered.value += 1
        except (WebSocketException, OSError):
            stop.wait(0.05)


def ask(url: str, first: int, stop: threading.Event, latencies: list[float], wrong: list[int]) -> None:
    """Ask at a steady rate and compare every answer."""
    number = first
    with RemotePolicy.open(url, timeout_s=30.0) as remote:
        while not stop.wait(PERIOD_S):
            number = first + (number + 1 - first) % 1000
            observation = observation_of(number)
            start = time.perf_counter()
            actions = remote.predict([observation])[0]
            latencies.append(time.perf_counter() - start)
            if not np.array_equal(actions, expected_actions(observation)):
                wrong.append(number)


def phase(
    url: str, seconds: float, *, with_garbage: bool, memory: list[int], pid: int
) -> tuple[float, float]:
    """Run the clients for a while; return p50 and p99 of the honest ones [ms]."""
    stop, latencies, wrong = threading.Event(), [], []
    threads = [threading.Thread(target=ask, args=(url, 1000 * i, stop, latencies, wrong)) for i in range(3)]
    processes = multiprocessing.get_context("spawn")
    attack_ends, num_answered = processes.Event(), processes.Value("l", 0)
    attacker = processes.Process(target=attack, args=(url, attack_ends, num_answered), daemon=True)
    if with_garbage:
        attacker.start()
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        stop.wait(min(left, max(1.0, seconds / 50)))
        memory.append(resident_bytes(pid))
    stop.set()
    for thread in threads:
        thread.join()
    if with_garbage:
        attack_ends.set()
        attacker.join()
    if wrong:
        raise SystemExit(f"wrong answers: {len(wrong)} of {len(latencies)}")
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    print(
        f"{'with' if with_garbage else 'without'} garbage: {len(latencies)} answers, all right; "
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms; {num_answered.value} pieces of garbage answered"
    )
    return float(p50), float(p99)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def send_large(url: str, kind: int) -> None:
    """Send four times 8 MB of garbage, whether or not anybody answers, and hang up."""
    size = 8 << 20
    header = b"\x81\xa1a\xc6" + (size - 8).to_bytes(4, "big")  # the third is a map with 8 MB at "a"
    piece = (b"\x80" * size, random.Random(kind).randbytes(size), header + b"\0" * (size - 8))[kind % 3]
    try:
        with connect(url, compression=None, proxy=None, ping_interval=None) as connection:
            connection.recv(timeout=60)
            for _ in range(4):
                connection.send(piece)
            for _ in range(4):
                connection.recv(timeout=60)
    except (WebSocketException, OSError):
        pass


def send_rounds(url: str, num_rounds: int, turn: Synchronized) -> None:
    """Send large garbage from 16 clients at once, in a process of its own, again and again."""
    for _ in range(num_rounds):
        clients = [threading.Thread(target=send_large, args=(url, kind)) for kind in range(16)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        turn.value += 1


def measure_memory(url: str, pid: int) -> None:
    """Print what the server takes in each round of large garbage, and how honest clients fare meanwhile."""
    quiet_memory: list[int] = []
    _, quiet_p99 = phase(url, 5.0, with_garbage=False, memory=quiet_memory, pid=pid)
    processes, num_rounds = multiprocessing.get_context("spawn"), 10
    turn = processes.Value("l", 0)
    sender = processes.Process(target=send_rounds, args=(url, num_rounds, turn), daemon=True)
    stop, latencies, wrong = threading.Event(), [], []
    honest = threading.Thread(target=ask, args=(url, 1000, stop, latencies, wrong))
    honest.start()
    sender.start()
    most, began = [0] * (num_rounds + 1), time.monotonic()
    while sender.is_alive():
        most[turn.value] = max(most[turn.value], resident_bytes(pid))
        time.sleep(0.005)
    stop.set()
    honest.join()
    seconds = time.monotonic() - began
    quiet, after = quiet_memory[-1], resident_bytes(pid)
    p99 = float(np.percentile(latencies, 99)) * 1e3
    print(f"resident MB: quiet {quiet / 1e6:.1f}, afterward {after / 1e6:.1f}; most in each round:")
    print("   ", " ".join(f"{size / 1e6:.1f}" for size in most[:num_rounds]))
    print(f"{seconds:.0f} s; honest p99 {quiet_p99:.1f} ms quiet, {p99:.1f} ms, {len(wrong)} wrong")
    if max(most) > quiet + 100e6 or wrong or turn.value != num_rounds:
        raise SystemExit("does not hold")


def main(what: str) -> None:
    command, quiet_log = [sys.executable, "-c", PROGRAM], subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=quiet_log, text=True)
    try:
        assert process.stdout is not None
        url = f"ws://127.0.0.1:{int(process.stdout.readline())}"
        if what == "memory":
            measure_memory(url, process.pid)
            return
        minutes = float(what)
        quiet_memory: list[int] = []
        memory: list[int] = []
        _, quiet = phase(url, 6 * minutes, with_garbage=False, memory=quiet_memory, pid=process.pid)
        _, loud = phase(url, 54 * minutes, with_garbage=True, memory=memory, pid=process.pid)
        tenths = [float(np.median(part)) for part in np.array_split(memory, 10)]
        course = " ".join(f"{size / 2**20:.1f}" for size in (quiet_memory[-1], *tenths))
        print("resident MiB, quiet and in tenths:", course)
        early, late = tenths[4], tenths[9]
        print(f"p99 with garbage / quiet: {loud / quiet:.2f}; memory late / early: {late / early:.3f}")
        if late > 1.05 * early or loud > 2 * quiet:
            raise SystemExit("does not hold")
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main(sys.argv[1])
