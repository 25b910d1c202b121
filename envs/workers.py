"""Worker processes that hold environments and run jobs on them, and the pool that talks to them.

A worker is a fresh interpreter that imports environments and never torch: it is started as a program of its
own, not by `multiprocessing`, whose spawned children import the parent's main module again (and with it torch
and Hydra). Parent and worker exchange pickled objects over a private socket pair; nothing is unpickled from
files or from the network. A job that raises and a worker that dies both become a `WorkerError` in the parent.

For the jobs see rollout.py, collection.py, videos.py and experiments/delay_episode.py.
"""

import abc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from envs.base import ManipulationEnv
from envs.opengl import backend
from envs.registry import ENVIRONMENTS
from vla.disk_faults import DiskFault
from vla.errors import VLAError

MAKE_ENV = "envs.registry:make_env"
STALL_TIMEOUT_S = 600.0  # no answer from any worker for this long is an error, not patience
_STOP_TIMEOUT_S = 10.0
_MOST_WORKERS_A_CORE = 8
_PROGRAM = "import sys, envs.workers; envs.workers.main(sys.argv[1:])"


class WorkerError(RuntimeError):
    """A job failed in a worker, or it died; the message tells which job, and the traceback of a bug."""


class Workspace:
    """What a worker keeps between jobs: its environments and the episodes that are under way.

    Environments are reused as long as possible. Before a new one is made the least recently used is closed
    when there are `max_envs`, but never the last that another slot requested, which may be playing. With
    OSMesa `max_envs` must be 1 (making a second context and then freeing the first leaves the second drawing
    nowhere, without an error).
    """

    def __init__(self, *, env_factory: str, max_envs: int) -> None:
        module, _, function = env_factory.partition(":")
        self._make_env: Callable[[Mapping[str, Any]], ManipulationEnv] = getattr(
            importlib.import_module(module), function
        )
        self._max_envs = max_envs
        self._envs: OrderedDict[tuple[int, str], ManipulationEnv] = OrderedDict()
        self._in_use: dict[int, tuple[int, str]] = {}  # by slot
        self.running: dict[int, Any] = {}  # by slot

    def env(self, slot: int, config: Mapping[str, Any]) -> ManipulationEnv:
        """Return the environment of a slot with this configuration, made now if there is none."""
        key = (slot, json.dumps(config, sort_keys=True))
        self._in_use[slot] = key
        if key not in self._envs:
            while len(self._envs) >= self._max_envs:
                self._envs.pop(self._least_recent()).close()
            self._envs[key] = self._make_env(config)
            if self._max_envs > 1 and os.environ.get("MUJOCO_GL") == "osmesa":
                raise RuntimeError(
                    "EGL is installed but does not work here; set MUJOCO_GL=osmesa, or repair it"
                )
        self._envs.move_to_end(key)
        return self._envs[key]

    def _least_recent(self) -> tuple[int, str]:
        unused = [key for key in self._envs if key not in self._in_use.values()]
        if not unused:
            raise RuntimeError(f"{len(self._in_use)} slots cannot share {self._max_envs} environment(s)")
        return unused[0]

    def close(self) -> None:
        """Close every environment, and with it its rendering context."""
        self.running.clear()
        self._in_use.clear()
        while self._envs:
            self._envs.popitem()[1].close()


class Job(abc.ABC):
    """Something to do in a worker. Jobs and their results are pickled, so they are plain data."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Return what to call the job in an error message, for example ``lift, seed 7``."""

    @abc.abstractmethod
    def run(self, workspace: Workspace, slot: int) -> Any:
        """Do it, in the worker."""


class Completed(NamedTuple):
    """A job that has ended, the slot that it ran on and what it returned."""

    slot: int
    job: Job
    result: Any


def max_envs(wanted: int) -> int:
    """Return how many environments may be alive in one process: with OSMesa no more than 1."""
    return 1 if backend() == "osmesa" else wanted


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, *, env_factory: str, max_envs: int) -> None:
        self.connection, theirs = Pipe()
        environment = os.environ | {
            "LP_NUM_THREADS": "0",  # software rendering in the calling thread: one core per worker
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        }
        families = json.dumps(ENVIRONMENTS.entries())  # those that the user added are known there too
        arguments = [str(theirs.fileno()), env_factory, str(max_envs), families]
        command = [sys.executable, "-P", "-c", _PROGRAM, *arguments]
        with theirs:
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
            )
        self.pending: OrderedDict[int, Job] = OrderedDict()  # by slot, in the order in which they run

    def failure(self) -> WorkerError:
        """Return the error for a worker that hung up: what it was doing and how it ended."""
        code = self.process.wait(_STOP_TIMEOUT_S)
        reason = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        doing = next((job.describe() for job in self.pending.values()), "nothing")
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return WorkerError(f"worker process {self.process.pid} {reason}{hint} while doing: {doing}")

    def stop(self) -> None:
        """Ask the process to end, and end it when it does not."""
        self.connection.close()
        try:
            self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class WorkerPool:
    """Runs jobs on numbered slots; slot i lives in worker i modulo `num_workers`.

    A slot is a place for one environment. Several slots a worker keep it busy while others wait for actions.

    Args:
        num_workers: processes.
        slots_per_worker: jobs that may be with one process at a time; it does them in turn.
        envs_per_worker: environments that one process keeps; see `max_envs`.
        env_factory: ``module:function`` that makes an environment from a configuration.

    Raises:
        ValueError: a number is below 1, or there are far more processes than cores.
    """

    def __init__(
        self,
        *,
        num_workers: int,
        slots_per_worker: int = 1,
        envs_per_worker: int = 1,
        env_factory: str = MAKE_ENV,
    ) -> None:
        if num_workers < 1 or slots_per_worker < 1:
            raise ValueError(
                f"num_workers={num_workers}, slots_per_worker={slots_per_worker}; both need to be at least 1"
            )
        cores = os.cpu_count() or 1
        if num_workers > _MOST_WORKERS_A_CORE * cores:
            raise ValueError(
                f"num_workers is {num_workers}, but this machine has {cores} cores; about one a core is "
                f"fastest, {_MOST_WORKERS_A_CORE * cores} are allowed"
            )
        self.num_slots = num_workers * slots_per_worker
        alive = max_envs(envs_per_worker)
        self._workers = [_Worker(env_factory=env_factory, max_envs=alive) for _ in range(num_workers)]

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, slot: int, job: Job) -> None:
        """Hand a job to a slot that has none.

        Raises:
            WorkerError: the worker is gone.
        """
        worker = self._workers[slot % len(self._workers)]
        assert slot not in worker.pending, f"slot {slot} is busy with {worker.pending[slot].describe()}"
        worker.pending[slot] = job
        try:
            worker.connection.send((slot, job))
        except (BrokenPipeError, ConnectionResetError):
            _receive_all(worker)  # it may have reported why before it ended
            raise worker.failure() from None

    def completed(self) -> list[Completed]:
        """Wait until at least one job has ended and return all that have.

        Raises:
            WorkerError: a job raised, a worker died, or none has answered for `STALL_TIMEOUT_S`.
        """
        busy = {worker.connection: worker for worker in self._workers if worker.pending}
        assert busy, "no job is under way"
        ready = wait(list(busy), timeout=STALL_TIMEOUT_S)
        if not ready:
            doing = [job.describe() for worker in busy.values() for job in worker.pending.values()]
            raise WorkerError(f"no worker has answered for {STALL_TIMEOUT_S:g} s; under way: {doing}")
        done = []
        for connection in ready:
            done.extend(_receive_all(busy[connection]))  # pyright: ignore[reportArgumentType]
        return done

    def run(
        self, jobs: Sequence[Job], *, max_ahead: int | None = None
    ) -> Generator[tuple[int, Any], None, None]:
        """Do all jobs, keeping every slot busy; as each ends, yield its position in `jobs` and its result.

        Args:
            jobs: begun in this order.
            max_ahead: no job begins this many places or more behind the first that has not ended; bounds what
                a caller holds who needs the results in order. None: no bound.

        Raises:
            WorkerError: as `completed`.
        """
        idle = list(range(self.num_slots))[::-1]
        positions: dict[int, int] = {}  # by slot
        ended: set[int] = set()
        num_begun, first_open = 0, 0
        while first_open < len(jobs):
            limit = len(jobs) if max_ahead is None else min(len(jobs), first_open + max_ahead)
            while idle and num_begun < limit:
                slot = idle.pop()
                positions[slot] = num_begun
                self.submit(slot, jobs[num_begun])
                num_begun += 1
            for slot, _, result in self.completed():
                idle.append(slot)
                ended.add(positions[slot])
                yield positions[slot], result
            while first_open in ended:
                ended.remove(first_open)
                first_open += 1

    def close(self) -> None:
        """End all workers; they finish the job that they are at. Safe to call more than once."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.stop()


def _receive_all(worker: _Worker) -> list[Completed]:
    """Return all answers that have arrived from a worker."""
    done = []
    try:
        while worker.pending and worker.connection.poll():
            slot, result, failure = worker.connection.recv()
            job = worker.pending.pop(slot)
            if failure is not None:
                number = worker.process.pid
                gap = "\n" if "\n" in failure else " "
                raise WorkerError(f"{job.describe()} failed in worker process {number}:{gap}{failure}")
            done.append(Completed(slot, job, result))
    except (EOFError, ConnectionResetError):
        raise worker.failure() from None
    return done


def main(arguments: list[str]) -> None:
    """Serve jobs until the parent hangs up.

    Arguments: file descriptor, environment factory, max_envs, environment families as JSON.
    """
    for number in (signal.SIGINT, signal.SIGHUP):  # these reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    descriptor, env_factory, max_envs, families = arguments
    for name, target in json.loads(families).items():
        ENVIRONMENTS.add(name, target)
    with Connection(int(descriptor)) as connection:
        workspace = Workspace(env_factory=env_factory, max_envs=int(max_envs))
        try:
            _serve(connection, workspace)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass  # the parent is done, or gone
        finally:
            workspace.close()


def _serve(connection: Connection, workspace: Workspace) -> None:
    while True:
        slot, job = connection.recv()
        try:
            result = job.run(workspace, slot)
        except (VLAError, DiskFault) as error:  # says all by itself
            connection.send((slot, None, str(error)))
            raise SystemExit(1) from error
        except Exception as error:
            connection.send((slot, None, traceback.format_exc()))
            raise SystemExit(1) from error
        connection.send((slot, result, None))
