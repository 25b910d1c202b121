"""The setting that a policy was trained in, kept with it: environment, tasks, cameras, level and look.

A checkpoint has it in its provenance, and so has a bundle that is made of it; recorded_setting.py makes it.
Programs that put a policy to work start from it, see earlier_settings.py, and print what is different.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from envs.registry import ENVIRONMENTS, with_current_names
from experiments.reports.tables import format_table
from vla.files import MANIFEST_NAME, DamagedFile, read_json_object
from vla.plugins import missing_plugin
from vla.registry import REQUIRED, UnknownPart

SETTING = "setting"  # in the provenance of a checkpoint and of a bundle
NOT_KEPT = "none is kept: the recording is of no simulator here, or the policy of an earlier version"
_ABSENT = object()


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedSetting:
    """What demonstrations in simulation showed.

    Attributes:
        env: family and settings of the environment, the task apart; the cameras are those of the policy.
        tasks: that were demonstrated.
        varied: values of the settings in which several recordings differ; `env` has those of the first.
    """

    env: Mapping[str, Any]
    tasks: Sequence[str]
    varied: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The family of the environment."""
        return self.env["family"]

    def to_json(self) -> dict[str, Any]:
        """Return what provenance keeps."""
        return asdict(self)

    def sentence(self) -> str:
        """Return the setting as a line of text."""
        shown = [f"{key} {_shown(value)}" for key, value in self.env.items() if key != "family"]
        return f"trained in {self.family}: " + "; ".join([f"tasks {_shown(list(self.tasks))}", *shown])


def setting_in(provenance: Mapping[str, Any], *, source: Path) -> TrainedSetting | None:
    """Return the setting that a policy keeps, or None if it keeps none.

    Args:
        provenance: of the policy.
        source: its directory, for errors.

    Raises:
        DamagedFile: what it keeps has another form.
    """
    stored = provenance.get(SETTING)
    if stored is None:
        return None
    try:
        setting = TrainedSetting(
            env=with_current_names(stored["env"]), tasks=list(stored["tasks"]), varied=dict(stored["varied"])
        )
        is_whole = all(isinstance(name, str) for name in (setting.family, *setting.tasks))
    except (TypeError, KeyError, ValueError, AttributeError):
        is_whole, setting = False, None
    if not is_whole:
        raise DamagedFile(
            f"{source / MANIFEST_NAME} keeps a setting of another form, {stored!r}; restore it from a copy"
        )
    return setting


def read_provenance(path: Path) -> Mapping[str, Any] | None:
    """Return the provenance of a bundle, a checkpoint, or the newest checkpoint of a run that can be read.

    Nothing is verified but that; whoever loads the policy does it. None if there is no such file.
    """
    steps = sorted(path.glob(f"checkpoints/step_*/{MANIFEST_NAME}"), reverse=True)
    for manifest in [path / MANIFEST_NAME, *steps]:
        try:
            provenance = read_json_object(manifest).get("provenance")
        except (OSError, DamagedFile):
            continue
        if isinstance(provenance, Mapping):
            return provenance
    return None


def require_family(setting: TrainedSetting, provenance: Mapping[str, Any], *, source: Path) -> None:
    """Check that the environment of a setting is known here; it is imported from nowhere.

    Raises:
        PluginError: it is of a plug-in that was not passed; the message names it.
    """
    if setting.family not in ENVIRONMENTS.names():
        known = ", ".join(ENVIRONMENTS.names())
        error = UnknownPart(f"env.family is {setting.family!r}; there are {known}")
        raise missing_plugin(error, provenance, source=source)


def differences(
    setting: TrainedSetting, *, env: Mapping[str, Any], tasks: Sequence[str]
) -> list[tuple[str, str, str]]:
    """Return in what a run differs from the setting of its policy: key, value in training, value of the run.

    Args:
        setting: of the policy.
        env: family and settings of the run's environment.
        tasks: of the run, none if they do not count.
    """
    rows = []
    if env["family"] != setting.family:
        rows.append(("env.family", setting.family, env["family"]))
    else:
        defaults = {one.name: one.default for one in ENVIRONMENTS.settings(setting.family)}
        for key in {**setting.env, **env}:
            before, now = (one.get(key, defaults.get(key, _ABSENT)) for one in (setting.env, env))
            if key in setting.varied:
                rows.append((f"env.{key}", " and ".join(map(_shown, setting.varied[key])), _shown(now)))
            elif before != now:
                rows.append((f"env.{key}", _shown(before), _shown(now)))
    if tasks and sorted(tasks) != sorted(setting.tasks):
        rows.append(("tasks", _shown(list(setting.tasks)), _shown(list(tasks))))
    return rows


def describe(
    provenance: Mapping[str, Any], *, source: Path, env: Mapping[str, Any], tasks: Sequence[str]
) -> str:
    """Return for the terminal the setting that a policy was trained in, and a table of what is different now.

    Args:
        provenance: of the policy.
        source: its directory.
        env: family and settings of the run's environment; empty for a robot that stands in none.
        tasks: of the run.

    Raises:
        DamagedFile: what the policy keeps has another form.
    """
    setting = setting_in(provenance, source=source)
    if setting is None:
        still = "; env and tasks are those of the configuration and the command line" if env else ""
        return f"setting of training: {NOT_KEPT}{still}"
    rows = differences(setting, env=env, tasks=tasks) if env else []
    if not rows:
        return setting.sentence()
    table = format_table(["different now", "in training", "this run"], [list(row) for row in rows])
    return f"{setting.sentence()}\n{table}"


def _shown(value: Any) -> str:
    if value is _ABSENT or value is REQUIRED:
        return "not set"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "null" if value is None else str(value)
