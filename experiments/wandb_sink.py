"""A `MetricSink` on Weights & Biases that a run never waits for and never dies of.

Numbers go through a bounded queue to a thread that alone talks to wandb; when the queue is full, or after the
first error, numbers are dropped with one warning. Offline unless an API key or a login is found. wandb is an
optional extra: `pip install -e '.[wandb]'`.
"""

import netrc
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

_INIT_TIMEOUT_S = 10.0  # below the next, so that a server that is away is an error before a run ends
_CLOSE_TIMEOUT_S = 20.0
_QUEUE_SIZE = 1000


def is_logged_in() -> bool:
    """Whether wandb would find a key: WANDB_API_KEY, or an entry for api.wandb.ai in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


class WandbSink:
    """Sends numbers to wandb from a thread of its own.

    `mode` is wandb's; left out, it is `online` when logged in and `offline` otherwise. WANDB_MODE overrides.
    """

    def __init__(
        self, *, run_dir: Path, project: str, config: Mapping[str, Any], run_id: str, mode: str | None = None
    ) -> None:
        self._arguments: dict[str, Any] = {
            "dir": str(run_dir),
            "project": project,
            "config": dict(config),
            "id": run_id,
            "resume": "allow",
            "mode": os.environ.get("WANDB_MODE") or mode or ("online" if is_logged_in() else "offline"),
            "settings": wandb.Settings(silent=True, init_timeout=_INIT_TIMEOUT_S),
        }
        self._queue: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_QUEUE_SIZE)
        self._broken = threading.Event()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over the values of a step; returns at once, whatever the network does."""
        if self._broken.is_set():
            return
        try:
            self._queue.put_nowait((step, dict(values)))
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
            run = wandb.init(**self._arguments)
            while (item := self._queue.get()) is not None:
                run.log(item[1], step=item[0])
            run.finish()
        except (wandb.Error, OSError, RuntimeError, ValueError, TypeError) as error:
            self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        if not self._broken.is_set():
            self._broken.set()
            print(f"[wandb] no more numbers are sent: {reason}; metrics.jsonl has them all", file=sys.stderr)
