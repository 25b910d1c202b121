"""A `MetricSink` on Weights & Biases that a run never waits for and never dies of.

What is logged goes through a bounded queue to a thread that alone talks to wandb; when the queue is full, or
after the first error, it is dropped with one warning. Offline unless an API key or a login is found. wandb is
an optional extra: `pip install -e '.[wandb]'`.
"""

import functools
import netrc
import os
import queue
import shlex
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import wandb

from envs.evaluation.results import Evaluation
from experiments.config.schema import WandbSettings

_INIT_TIMEOUT_S = 10.0  # below the next, so that a server that is away is an error before a run ends
_CLOSE_TIMEOUT_S = 20.0
_QUEUE_SIZE = 1000
DEFAULT_PROJECT = "vla-stack"
COLUMNS = ("instruction mode", "task", "successes", "episodes", "success", "low", "high")


def is_logged_in() -> bool:
    """Whether wandb would find a key: WANDB_API_KEY, or an entry for api.wandb.ai in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def names_of_run(settings: WandbSettings, run_dir: Path) -> dict[str, Any]:
    """Return what `wandb.init` is given to name a run; where it is given None, it reads its own variables.

    Args:
        settings: keys that are given come before wandb's variables, and these before names of directories.
        run_dir: of the run; a numbered one belongs to a sweep.
    """
    is_of_sweep = run_dir.name.isdigit()
    name = f"{run_dir.parent.name}/{run_dir.name}" if is_of_sweep else run_dir.name
    sweep = run_dir.parent.name if is_of_sweep else None
    return {
        "project": settings.project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
        "entity": settings.entity,
        "name": settings.name or os.environ.get("WANDB_NAME") or name,
        "group": settings.group or os.environ.get("WANDB_RUN_GROUP") or sweep,
        "tags": list(settings.tags) or None,
    }


class WandbSink:
    """Sends numbers to wandb from a thread of its own, which begins a run with the first of them.

    `mode` is wandb's; left out, it is `online` when logged in and `offline` otherwise. WANDB_MODE overrides.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        settings: WandbSettings,
        config: Mapping[str, Any],
        run_id: str,
        mode: str | None = None,
    ) -> None:
        self._arguments: dict[str, Any] = {
            **names_of_run(settings, run_dir),
            "dir": str(run_dir),
            "config": dict(config),
            "id": run_id,
            "resume": "allow",
            "mode": os.environ.get("WANDB_MODE") or mode or ("online" if is_logged_in() else "offline"),
            "settings": wandb.Settings(silent=True, init_timeout=_INIT_TIMEOUT_S),
        }
        self._queue: queue.Queue[tuple[int, Callable[[], dict[str, Any]]] | None] = queue.Queue(_QUEUE_SIZE)
        self._broken = threading.Event()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over the values of a step; returns at once, whatever the network does."""
        self._put(step, functools.partial(dict, values))

    def log_evaluation(self, step: int, results: Mapping[str, Evaluation]) -> None:
        """Hand over success rates, a table of all tasks and the films of evaluations by instruction mode."""
        self._put(step, functools.partial(evaluation_values, results))

    def _put(self, step: int, make: Callable[[], dict[str, Any]]) -> None:
        if self._broken.is_set():
            return
        try:
            self._queue.put_nowait((step, make))
        except queue.Full:
            self._give_up("it does not keep up")

    def close(self) -> None:
        """Wait at most 20 s for what is queued; then leave it."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self._give_up("it did not finish in time")

    def _work(self) -> None:
        try:
            if (item := self._queue.get()) is None:
                return
            run = wandb.init(**self._arguments)
            while item is not None:
                step, make = item
                run.log(make(), step=step)
                item = self._queue.get()
            where = self._where(run)
            run.finish()
            print(where)
        except (wandb.Error, OSError, RuntimeError, ValueError, TypeError) as error:
            self._give_up(f"{type(error).__name__}: {error}")

    def _where(self, run: wandb.Run) -> str:
        """Return in a line where the run is, and how to send it if that was not done."""
        if self._arguments["mode"] == "offline":
            folder = Path(run.dir).parent  # of `files`
            return f"wandb: {folder}; to send it: {shlex.join(['wandb', 'sync', str(folder)])}"
        return f"wandb: {run.url or 'nothing is kept'}"

    def _give_up(self, reason: str) -> None:
        if not self._broken.is_set():
            self._broken.set()
            print(f"[wandb] no more numbers are sent: {reason}; metrics.jsonl has them all", file=sys.stderr)


def evaluation_values(results: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return what wandb shows of evaluations by instruction mode: rates, a table, films."""
    rows = [
        [mode, task, one.successes, one.episodes, one.success_rate, one.interval.low, one.interval.high]
        for mode, found in results.items()
        for task, one in found.tasks.items()
    ]
    films = {
        f"film/{mode}/{record.task}/{record.seed}": wandb.Video(
            str(found.run_dir / record.video),
            caption=f"{'success' if record.success else 'failure'}: {record.given_instruction}",
            format="mp4",
        )
        for mode, found in results.items()
        for record in found.videos
    }
    rates = {f"success/{mode}": found.mean_success_rate for mode, found in results.items()}
    return {**rates, "success by task": wandb.Table(columns=[*COLUMNS], data=rows), **films}
