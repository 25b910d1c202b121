"""Other projects' policies on the work that ours is timed on, each in an interpreter of its own.

This file runs them and puts them into the table; `lerobot_peer` imports LeRobot.
"""

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

from experiments.benchmarks import lerobot_peer
from experiments.benchmarks.lerobot_peer import PeerTimes, Work
from experiments.benchmarks.measure import Row
from experiments.config.schema import BenchmarkRun
from vla.data.reader import Dataset

TIMEOUT_S = 600.0


def ask(python: Path, work: Work) -> PeerTimes:
    """Time LeRobot's policy by the interpreter `python`.

    Raises:
        RuntimeError: there is no such interpreter, or it has no LeRobot; says what it printed.
    """
    command = [str(python), str(Path(lerobot_peer.__file__).resolve()), json.dumps(asdict(work))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except FileNotFoundError as error:
        raise RuntimeError(
            f"peer_python={python}: no such interpreter; name one that has lerobot, or leave peer_python out"
        ) from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"peer_python={python} could not time LeRobot:\n{error.stderr[-2000:]}") from error
    return PeerTimes(**json.loads(done.stdout.splitlines()[-1]))


def training_row(run: BenchmarkRun, *, python: str, num_threads: int, ours: float) -> Row:
    """Return LeRobot's training rate on batches like ours; `ours` is our rate [samples/s]."""
    peer = ask(Path(python), _work(run, num_threads=num_threads))
    rate = run.trainer.batch_size / peer.train_step_s
    note = f"{_told(peer)}; no data path; ours is {ours / rate:.1f} times as fast"
    return Row(name=f"training, {peer.name}", value=rate, unit="samples/s", note=note)


def latency_row(run: BenchmarkRun, *, python: str) -> Row:
    """Return LeRobot's time from one observation to a chunk, on one thread."""
    peer = ask(Path(python), _work(run, num_threads=1))
    return Row(name=f"chunk, {peer.name}", value=1e3 * peer.chunk_s, unit="ms", note=_told(peer))


def _told(peer: PeerTimes) -> str:
    return f"{peer.parameters / 1e6:.1f} M parameters, fp32"


def _work(run: BenchmarkRun, *, num_threads: int) -> Work:
    spec = Dataset(run.dataset).robot_spec
    return Work(
        image_size=spec.cameras[0].height,
        num_cameras=len(run.data.get("cameras") or spec.cameras),
        state_dim=len(spec.state),
        action_dim=len(spec.action),
        action_horizon=run.processor.action_horizon,
        batch_size=run.trainer.batch_size,
        num_threads=num_threads,
        repeats=min(run.repeats, 5),  # a step of ACT takes seconds
    )
