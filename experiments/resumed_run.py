"""What a resumed training may change, and the record of what it did change, kept with the weights.

The manifest of a checkpoint has the configuration that it was trained with. A command that continues the run
is compared with that before anything is recorded or decoded; what it changes and may change is printed,
appended to `changes.jsonl` with the step from which on it applies, and kept in the provenance of all later
checkpoints.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vla.errors import Refusal
from vla.files import JsonLinesAppender, read_manifest
from vla.model.checkpoint import (
    WEIGHTS_NAME,
    CheckpointError,
    list_checkpoints,
    newest_whole_checkpoint,
    read_state,
)
from vla.training.settings import MAY_CHANGE

CHANGES, CHANGES_FILE = "changes", "changes.jsonl"  # in a provenance; in the directory of a run
OVERRIDES = "overrides"  # in a provenance: what the command line set
EVALUATION = "evaluation"  # folder of a training run
BEGUN, TRAINED = "init_from", "trained"  # in a provenance: what training began with, and its episodes
SAMPLES = "num_samples"  # and how many samples it was trained on
_PLACES = (
    "out_dir",
    "dataset",
    "init_from",
    "robot_file",
    "data.cache_dir",
    "data.more_datasets",
    "trainer.resume",
)
_SHAPES = ("model.", "codec.", "processor.", "data.", "trainer.", "seed", "init_statistics")
_OF_WEIGHTS = ("model.backbone", "model.head.kind", "codec.")
_OF_RECORDING = ("collect.", "env.", "tasks")
_ABSENT = None  # a key that is left out counts as null


class ResumeRefused(CheckpointError, Refusal):
    """A command changes what the run that it continues has to keep."""


class Changed(NamedTuple):
    """A setting that differs from that of the weights: of before, of now."""

    before: Any
    now: Any


class Resumption(NamedTuple):
    """The checkpoint that a command continues.

    Attributes:
        step: of the checkpoint.
        changed: what the command changes, by whole key.
        earlier: what commands before changed, as lines of `changes.jsonl`.
        episodes: fingerprints that it was trained on, and held out.
    """

    step: int
    changed: Mapping[str, Changed]
    earlier: list[dict[str, Any]]
    episodes: Mapping[str, list[str]]

    def history(self, command: str) -> list[dict[str, Any]]:
        """Return all changes in the life of the run, as lines of `changes.jsonl`.

        Args:
            command: the one that continues.
        """
        return [*self.earlier, *([self.line(command)] if self.changed else [])]

    def line(self, command: str) -> dict[str, Any]:
        """Return the changes of this command."""
        return {
            "step": self.step,
            "changed": {key: [one.before, one.now] for key, one in self.changed.items()},
            "command": command,
        }

    def text(self) -> str:
        """Return the changes of this command in words."""
        return f"from step {self.step} on: {_listed(self.changed)}"


def resumption(run_dir: Path, config: Mapping[str, Any]) -> Resumption | None:
    """Return what a command continues; None for a new run, and for weights that keep no configuration.

    Args:
        run_dir: of the run.
        config: of the command, as its provenance will have it.

    Raises:
        ManifestError: there are checkpoints, but all are damaged.
    """
    newest, _ = newest_whole_checkpoint(run_dir, report=lambda _: None)
    if newest is None:
        return None
    provenance = read_manifest(newest)["provenance"]
    if "config" not in provenance:
        return None
    before, now = provenance["config"], json.loads(json.dumps(config))
    known = {key: now[key] for key in now if key in before}  # others came with a newer version
    return Resumption(
        step=read_state(newest)["step"],
        changed=_differences(before, known),
        earlier=provenance.get(CHANGES, []),
        episodes=provenance.get("episodes", {}),
    )


def require_resumable(found: Resumption, run_dir: Path, *, may_override: bool, records: bool) -> None:
    """Check what a command changes, before it records or decodes anything.

    Args:
        found: what it continues.
        run_dir: of the run.
        may_override: whether settings that shape what is learned may change.
        records: whether it will record.

    Raises:
        ResumeRefused: it changes what it must not; the message names all that, and what to do.
    """
    of_weights = {key: one for key, one in found.changed.items() if key.startswith(_OF_WEIGHTS)}
    if of_weights:
        raise ResumeRefused(
            f"{run_dir} was trained with other settings until step {found.step}: {_listed(of_weights)}. Its "
            "weights have that shape: give those of before, or train in a new run directory, with "
            f"init_from={run_dir} to keep what fits"
        )
    refused = {
        key: one
        for key, one in found.changed.items()
        if (_shapes(key) and not may_override) or (records and key.startswith(_OF_RECORDING))
    }
    if refused:
        raise ResumeRefused(
            f"{run_dir} was trained with other settings until step {found.step}: {_listed(refused)}. Give "
            "those of before, train in a new run directory, or continue with the new ones by "
            "trainer.resume=override record=false"
        )


def require_same_episodes(
    found: Resumption, run_dir: Path, episodes: Mapping[str, list[str]], *, may_override: bool
) -> None:
    """Check that a run goes on with the episodes that it began with, and holds out the same ones.

    Raises:
        ResumeRefused: it does not.
    """
    differing = [
        f"{what}: {len(found.episodes[what])} before, {len(episodes[what])} now, "
        f"{len(set(found.episodes[what]) & set(episodes[what]))} of both"
        for what in ("trained", "held_out")
        if set(found.episodes.get(what, episodes[what])) != set(episodes[what])
    ]
    if differing and not may_override:
        raise ResumeRefused(
            f"{run_dir} was trained on other episodes until step {found.step} ({'; '.join(differing)}), and "
            "held-out numbers of other episodes do not compare. Give the dataset and the settings of data as "
            "they were, train in a new run directory, or continue by trainer.resume=override"
        )


def begin(found: Resumption, run_dir: Path, *, command: str, trains_on: bool) -> None:
    """Print and append what an accepted command changes, and set aside the evaluation of earlier weights.

    Args:
        found: what it continues.
        run_dir: of the run.
        command: as typed.
        trains_on: whether the weights will change.
    """
    if found.changed:
        print(found.text(), flush=True)
        with JsonLinesAppender(run_dir / CHANGES_FILE) as log:
            log.append(found.line(command))
    evaluation, aside = run_dir / EVALUATION, run_dir / f"{EVALUATION}_step_{found.step:08d}"
    if trains_on and evaluation.exists() and not aside.exists():
        evaluation.rename(aside)
        print(f"the evaluation of step {found.step} is now {aside}", flush=True)


def recorded_overrides(run_dir: Path) -> list[str] | None:
    """Return what the command line of a run's newest weights set; None where they do not tell."""
    found = list_checkpoints(run_dir)
    return read_manifest(found[-1])["provenance"].get(OVERRIDES) if found else None


def newest_weights(run_dir: Path) -> str | None:
    """Return the hash of a run's newest weights, which is their id as a policy; None without checkpoints."""
    found = list_checkpoints(run_dir)
    return read_manifest(found[-1])["files"][WEIGHTS_NAME]["sha256"] if found else None


def _shapes(key: str) -> bool:
    name = key.removeprefix("trainer.")
    is_free = key.startswith("trainer.") and name.split(".")[0] in MAY_CHANGE
    return key.startswith(_SHAPES) and not is_free


def _listed(changed: Mapping[str, Changed]) -> str:
    return ", ".join(f"{key}={_shown(one.now)} (was {_shown(one.before)})" for key, one in changed.items())


def _shown(value: Any) -> str:
    return "null" if value is None else json.dumps(value).strip('"')


def _differences(before: Any, now: Any, key: str = "") -> dict[str, Changed]:
    if key in _PLACES:
        return {}
    if isinstance(before, dict) and isinstance(now, dict):
        found: dict[str, Changed] = {}
        for name in [*now, *(one for one in before if one not in now and key)]:
            whole = f"{key}.{name}" if key else name
            found |= _differences(before.get(name, _ABSENT), now.get(name, _ABSENT), whole)
        return found
    return {} if before == now else {key: Changed(before, now)}
