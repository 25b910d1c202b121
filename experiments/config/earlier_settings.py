"""Settings from elsewhere, laid under a command line: of an earlier run, or of the training of a policy.

`from_run=<directory>` starts a program with the settings of an earlier run; a program that puts a policy to
work starts from the environment that the policy was trained in. Both become overrides in front of those that
were typed, so that what is typed counts, and the record of the run has what it ran with.
"""

import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from envs.registry import expand_tasks
from experiments.config import rounds
from experiments.config.command_line import CommandLine
from experiments.config.declared import nested_class
from experiments.config.from_run import KEY, EarlierRun, read_policy, read_run
from experiments.config.overrides import leaves, overrides
from experiments.config.plugins import GROUPS
from experiments.config.robot import ROBOTS
from experiments.config.run_record import RECORD
from experiments.config.schema import ROOTS
from experiments.config.trained_setting import TrainedSetting, read_provenance, require_family, setting_in
from policies.pretrained_names import policy_path
from vla.registry import Registry, SettingError, absolute_path, settings_of

POLICIES = {  # programs that make environments for a policy, and their key that says where it lies
    "evaluate": "path",
    "demo": "path",
    "control": "bundle",
    "delay_table": "bundle",
}

GO_ON = {"improve": "path"}  # programs that continue the training of a policy, with the settings of its run
MORE_DATASETS = "data.more_datasets"
SETTINGS = "config"  # in the provenance of a checkpoint


def with_earlier_settings(arguments: Sequence[str], program: str) -> list[str]:
    """Return a command line with what it starts from in front.

    Args:
        arguments: of the command line.
        program: its name.

    Raises:
        SettingError: `from_run` names no run, or one whose settings this version does not have.
        PluginError: the policy's environment is of a plug-in that was not passed.
        HydraException, OmegaConfBaseException: a key or a choice does not exist.
    """
    typed = CommandLine(words=arguments, program=program)
    if typed.asks_for_help:
        return list(arguments)
    if typed.has_own_root:
        if _runs_asked_for(typed):
            raise SettingError(f"{KEY} and --config-path both say where to start from; give one of them")
        return list(arguments)
    first: list[str] = []
    run, seen = _earlier_run(typed)
    if run is not None:
        first = lay_under(typed, _with_datasets(run.values, seen) if seen else run.values)
        if not typed.only_shows and os.environ.get("RANK", "0") == "0":
            print(run.sentence())
            if seen and not typed.gives(MORE_DATASETS):
                print(f"and what the rounds behind this policy recorded: {', '.join(seen)}")
    typed = CommandLine(words=[*first, *arguments], program=program)
    if program in POLICIES:
        first = [*lay_under(typed, _of_policy(typed)), *first]
    return [*first, *arguments]


def _runs_asked_for(typed: CommandLine) -> list[Any]:
    """Return the values of `from_run`, or else the run that trained the policy which a program trains on."""
    trained = _trained_by(typed)
    given = typed.values(KEY) or ([] if trained is None else [str(trained[0])])
    return [] if given == [None] else given


def _earlier_run(typed: CommandLine) -> tuple[EarlierRun | None, list[str]]:
    """Return the run whose settings a program starts with, and what rounds of improvement recorded in it."""
    runs, trained = _runs_asked_for(typed), _trained_by(typed)
    if not runs:
        return (None if typed.values(KEY) else _kept_with_policy(typed)), []
    if len(runs) != 1 or not isinstance(runs[0], str):
        raise SettingError(f"{KEY} is {runs}; give the directory of one run")
    seen = [] if trained is None else [str(one) for one in rounds.recordings_behind(*trained)]
    return read_run(Path(absolute_path(runs[0])), for_program=typed.program), seen


def _kept_with_policy(typed: CommandLine) -> EarlierRun | None:
    """Return the settings that the policy which a program trains further keeps of its training, if any."""
    for policy in _policies(typed):
        provenance = read_provenance(policy) or {}
        if isinstance(provenance.get(SETTINGS), Mapping):
            return read_policy(policy, provenance[SETTINGS], for_program=typed.program)
    return None


def _policies(typed: CommandLine) -> list[Path]:
    """Return where the policies lie that a program trains further."""
    paths = typed.values(GO_ON[typed.program]) if typed.program in GO_ON else []
    return [Path(policy_path(str(one))) for one in paths if one is not None]


def _trained_by(typed: CommandLine) -> tuple[Path, Path] | None:
    """Return the run that trained the policy which a program trains further, and where that policy lies.

    None where that run left no record.
    """
    places = [(run, policy) for policy in _policies(typed) for run in (policy, *policy.parents[:4])]
    return next((place for place in places if (place[0] / RECORD).is_dir()), None)


def _with_datasets(values: Mapping[str, Any], added: Sequence[str]) -> dict[str, Any]:
    """Return the values of a run with further recordings."""
    group, name = MORE_DATASETS.split(".")
    data = values.get(group) or {}
    return {**values, group: {**data, name: [*(data.get(name) or ()), *added]}}


def lay_under(typed: CommandLine, wanted: Mapping[str, Any]) -> list[str]:
    """Return overrides that give a program these values where its command line gives none.

    Values that it has anyway are left out. Of a part chosen by name, such as `env`, none is laid if the
    command line chooses another one.

    Args:
        typed: the command line.
        wanted: values by key, nested ones as maps.
    """
    plain, first, left_out = typed.composed(), list[str](), list[str]()
    for group, registry in GROUPS.items():
        key = group.replace("/", ".")
        part = _within(wanted, key)
        name = part.get(registry.key) if isinstance(part, Mapping) else None
        if name is None or _within(plain, f"{key}.{registry.key}") == name:
            continue
        if group in typed.choices or typed.gives(f"{key}.{registry.key}"):
            left_out.append(key)
        else:
            first.append(f"{group}={name}")
    base = typed.composed(first=first)
    raw = OmegaConf.to_container(base, resolve=False)
    assert isinstance(raw, dict)
    changed = {
        key: value
        for key, value in leaves(wanted)
        if not typed.gives(key)
        and not any(key == one or key.startswith(f"{one}.") for one in left_out)
        and value not in ({}, _within(raw, key), _within(base, key))
    }
    gone = [
        f"~{key}.{name}"
        for key in _maps_of(ROOTS.get(typed.program))
        if isinstance(_within(wanted, key), Mapping)
        for name in _within(raw, key) or ()
        if name not in _within(wanted, key) and not typed.gives(f"{key}.{name}")
    ]
    return [*first, *gone, *overrides(changed)]


def _maps_of(owner: type, *, prefix: str = "") -> Iterator[str]:
    """Yield the settings, nested ones too, that are maps by names which a person chooses."""
    for setting in settings_of(owner):
        inner = nested_class(setting)
        if inner is not None:
            yield from _maps_of(inner, prefix=f"{prefix}{setting.name}.")
        elif typing.get_origin(setting.type) is dict and not isinstance(setting.constraint, Registry):
            yield f"{prefix}{setting.name}"


def _within(values: Any, key: str) -> Any:
    """Return the value of a dotted key; None if there is none, or if it has no value yet."""
    for name in key.split("."):
        try:
            values = values.get(name) if isinstance(values, Mapping | DictConfig) else None
        except OmegaConfBaseException:
            return None
    return OmegaConf.to_container(values, resolve=True) if isinstance(values, ListConfig) else values


def _of_policy(typed: CommandLine) -> dict[str, Any]:
    """Return environment and tasks in which the policy of a command line was trained, as far as they count.

    Nothing counts for a robot that stands in no scene, or where another family is given.
    """
    key = POLICIES[typed.program]
    config = typed.composed()
    given = typed.values(key) or [_within(config, key)]
    found = [_setting_at(Path(policy_path(str(one)))) for one in given if one is not None]
    known = [(setting, provenance, path) for setting, provenance, path in found if setting is not None]
    if not known:
        return {}
    setting, provenance, path = known[0]
    if len(known) < len(found) or any(one.to_json() != setting.to_json() for one, _, _ in known):
        raise SettingError(
            f"{key} is a sweep over policies that were trained in different settings; start them one by one, "
            "or those of one setting together"
        )
    family = _within(config, "env.family")
    is_given = typed.gives("env") or typed.gives("env.family") or "env" in typed.choices
    if (is_given and family != setting.family) or not _is_in_scene(config):
        return {}
    require_family(setting, provenance, source=path)
    tasks, task = list(setting.tasks), _within(config, "task")
    wants: dict[str, Any] = {"env": dict(setting.env)}
    if expand_tasks(setting.family, _within(config, "tasks") or []) != tasks and (
        task is None or task in tasks
    ):
        wants["tasks"] = tasks
    return wants


def _setting_at(path: Path) -> tuple[TrainedSetting | None, Mapping[str, Any], Path]:
    provenance = read_provenance(path) or {}
    return setting_in(provenance, source=path), provenance, path


def _is_in_scene(config: DictConfig) -> bool:
    """Whether a program makes environments: all do that drive no robot, and those whose robot is in one."""
    kind = _within(config, "robot.kind")
    return kind is None or bool(_within(config, "env")) or ROBOTS.get(kind).is_simulated
