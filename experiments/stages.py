"""Remembers which stages of a long program are done, so that running it again continues where it stopped.

Also compares the settings of a program that continues with those that it began with.
"""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vla.errors import Refusal
from vla.files import atomic_write_json, read_json


class SettingsChanged(Refusal):
    """What is there was made with other settings than those given now."""


def require_unchanged(
    directory: Path, *, stored: Mapping[str, Any], given: Mapping[str, Any], advice: str
) -> None:
    """Check that a program that continues has the settings that it began with.

    Raises:
        SettingsChanged: a setting differs; the message names all that do, and what else to give: `advice`.
    """
    changed = sorted(_differences(stored, given))
    if changed:
        raise SettingsChanged(
            f"{directory} was begun with other settings of {changed}; give the same, {advice}"
        )


class Stages:
    """The record of a program's stages in one JSON file: settings, and seconds spent by stage.

    Args:
        path: of the file.
        settings: of the program.
        binds: whether other settings than those in the file are refused; if not, all stages are run again, of
            which each continues what it finds.
        advice: what else to give when they are refused, for the message.

    Raises:
        SettingsChanged: the file was begun with other `settings`; the message names them.
    """

    def __init__(
        self,
        path: Path,
        *,
        settings: Mapping[str, Any],
        binds: bool = True,
        advice: str = "another out_dir, or fresh=true to start over",
    ) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(dict(settings)))  # as it will be read back
        self.seconds: dict[str, float] = {}
        self.finished: list[str] = []
        if path.exists():
            stored = read_json(path)
            if not binds and stored["settings"] != self.settings:
                return
            require_unchanged(
                path.parent,
                stored=stored["settings"],
                given=self.settings,
                advice=advice,
            )
            self.seconds, self.finished = stored["seconds"], stored["finished"]

    def run(self, name: str, stage: Callable[[], None]) -> None:
        """Call `stage` unless it was finished before, and say so."""
        if name in self.finished:
            print(f"== {name}: done before, in {self.seconds[name]:.0f} s", flush=True)
            return
        print(f"== {name}", flush=True)
        started = time.monotonic()
        try:
            stage()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
            self._write()
        self.finished.append(name)
        self._write()
        print(f"== {name} took {self.seconds[name]:.0f} s, {self.total_s:.0f} s so far\n", flush=True)

    def reopen(self, name: str) -> None:
        """Forget that a stage and those after it were finished; the time that they took still counts."""
        if name in self.finished:
            self.finished = self.finished[: self.finished.index(name)]
            self._write()

    @property
    def total_s(self) -> float:
        """Seconds of all stages, over all attempts."""
        return sum(self.seconds.values())

    def _write(self) -> None:
        content = {"settings": self.settings, "seconds": self.seconds, "finished": self.finished}
        atomic_write_json(self.path, content)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key in {*old, *new}:
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            names += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            names.append(prefix + key)
    return names
