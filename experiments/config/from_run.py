"""Reads the record of an earlier run, for a program that starts with its settings: `from_run=<directory>`.

The keys that both programs have are taken, except what belongs to a run alone, such as its directory. Nothing
is imported because a record says so: plug-ins are passed again. A policy without the record of its run, such
as a pretrained one, keeps its settings itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from experiments.config.declared import nested_class
from experiments.config.run_record import RECORD, runs_below
from experiments.config.schema import ROOTS
from policies.pretrained_names import is_short_name
from vla.errors import did_you_mean
from vla.files import MANIFEST_NAME
from vla.registry import FilePath, Registry, Setting, SettingError, settings_of

KEY = "from_run"
OF_ONE_RUN = ("out_dir", "plugins", "from_run", "fresh", "replace", "results", "mend")
OF_ONE_PERSON = ("logger", "wandb")  # of whoever trained the policy
MEANS_ITS_OWN = {  # keys of a program that mean something else in others
    "evaluate": ("dataset", "metric"),
    "convert": ("dataset",),
    "export": ("bundle",),
    "control": ("seed",),
    "improve": ("evaluation", "rollouts", "metric", "init_from", "init_statistics"),
}
_OUT_DIR = "${out_dir}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierRun:
    """What a program takes from the record of an earlier run.

    Attributes:
        directory: of that run.
        program: that it was.
        values: by key, nested ones as maps; relative paths count from where that run was started.
        other: keys that are not taken.
    """

    directory: Path
    program: str
    values: Mapping[str, Any]
    other: tuple[str, ...]

    def sentence(self) -> str:
        """Return in a line what is taken from where."""
        text = f"settings of {self.directory} ({self.program}): {', '.join(self.values) or 'none'}"
        return f"{text}; not taken: {', '.join(self.other)}" if self.other else text


def read_run(directory: Path, *, for_program: str) -> EarlierRun:
    """Return what a program takes from the record of a run.

    Args:
        directory: of the run.
        for_program: the name of the program that is to start with its settings.

    Raises:
        SettingError: there is no such directory, no record, or one that this version cannot read; one line.
    """
    config, hydra = (_read_yaml(directory, name) for name in ("config", "hydra"))
    path = directory / RECORD / "config.yaml"
    name, runtime = _text(hydra, "hydra.job.name"), _text(hydra, "hydra.runtime.output_dir")
    started_in = _text(hydra, "hydra.runtime.cwd")
    if name not in ROOTS.names() or runtime is None or started_in is None:
        raise SettingError(
            f"{KEY}: {path.with_name('hydra.yaml')} is of no program of ours; give the directory of a run of "
            f"{', '.join(ROOTS.names())}"
        )
    here, known = (
        {setting.name: setting for setting in settings_of(ROOTS.get(one))} for one in (for_program, name)
    )
    for key in map(str, config):
        if key not in known:
            raise _unknown(path, key, known)
    raw, whole = _containers(config, path, out_dir=runtime)
    own = () if name == for_program else MEANS_ITS_OWN.get(name, ()) + MEANS_ITS_OWN.get(for_program, ())
    reader = _Reader(path=path, started_in=Path(started_in), plugins=whole.get("plugins") or [])
    given = _kept(raw, whole, drops_out_dir=name == for_program)
    values = reader.read_top(here, given, without=(*OF_ONE_RUN, *own))
    return _earlier(directory, name, values, known)


def read_policy(directory: Path, config: Mapping[str, Any], *, for_program: str) -> EarlierRun:
    """Return what a program takes from the settings that a policy keeps of its training.

    That is all but places, as what lay where the policy was trained need not lie here, and the account to
    which that training was logged.

    Args:
        directory: of the policy.
        config: the settings that it keeps.
        for_program: the name of the program that is to start with them.

    Raises:
        SettingError: this version does not know one of them.
    """
    path = directory / MANIFEST_NAME
    here, known = ({one.name: one for one in settings_of(ROOTS.get(name))} for name in (for_program, "train"))
    reader = _Reader(path=path, started_in=None, plugins=config.get("plugins") or [])
    trainer = dict(config.get("trainer") or {})
    trainer.pop("seed", None)  # is that of the run
    own = (*OF_ONE_RUN, *OF_ONE_PERSON, *MEANS_ITS_OWN.get(for_program, ()))
    given = {key: value for key, value in {**config, "trainer": trainer}.items() if key in known}
    return _earlier(directory, "train", reader.read_top(here, given, without=own), known)


def _earlier(
    directory: Path, program: str, values: Mapping[str, Any], known: Mapping[str, Setting]
) -> EarlierRun:
    other = tuple(key for key in known if key not in values and key not in OF_ONE_RUN)
    return EarlierRun(directory=directory, program=program, values=values, other=other)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """Reads values as declared: unknown keys are refused, and relative paths are those of the run.

    Where nobody knows in which directory it was started, paths are left out.
    """

    path: Path
    started_in: Path | None
    plugins: list[str]

    def read_top(
        self, here: Mapping[str, Setting], given: Mapping[str, Any], *, without: tuple[str, ...]
    ) -> dict[str, Any]:
        """Return what is given of the settings of a program."""
        return {
            key: self.read(here[key], value, key)
            for key, value in given.items()
            if key in here and key not in without and self._has_meaning(here[key])
        }

    def _has_meaning(self, setting: Setting) -> bool:
        """Whether a value means something here: a relative path does not, from an unknown directory."""
        return self.started_in is not None or not isinstance(setting.constraint, FilePath)

    def read(self, setting: Setting, value: Any, key: str) -> Any:
        if isinstance(setting.constraint, FilePath):
            return [self._place(one) for one in value] if isinstance(value, list) else self._place(value)
        if not isinstance(value, Mapping):
            return value
        if isinstance(setting.constraint, Registry):
            return self._read_part(setting.constraint, value, key)
        inner = nested_class(setting)
        return value if inner is None else self._read_all(inner, value, key)

    def _read_part(self, registry: Registry[Any], value: Mapping[str, Any], key: str) -> dict[str, Any]:
        name = value.get(registry.key)
        if name is None:
            return dict(value)
        if name not in registry.names():
            passed = ",".join(map(str, self.plugins))
            had = f"; that run had plugins=[{passed}], pass them" if passed else ""
            raise SettingError(
                f"{KEY}: {self.path} has {key}.{registry.key}={name}, which is unknown here; there are "
                f"{', '.join(registry.names())}{had}"
            )
        settings = {one: inside for one, inside in value.items() if one != registry.key}
        return {registry.key: name, **self._read_all(registry.made_by(name), settings, key)}

    def _read_all(self, owner: Any, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        declared = {setting.name: setting for setting in settings_of(owner)}
        for name in values:
            if name not in declared:
                raise _unknown(self.path, f"{where}.{name}", declared)
        return {
            name: self.read(declared[name], one, f"{where}.{name}")
            for name, one in values.items()
            if self._has_meaning(declared[name])
        }

    def _place(self, path: Any) -> Any:
        """Return a path of the run as it counts from here."""
        assert self.started_in is not None, "paths are left out"
        if not isinstance(path, str) or path.startswith("~") or self.started_in == Path.cwd():
            return path
        if is_short_name(path):
            return path
        return str(self.started_in / path)


def _unknown(path: Path, key: str, known: Any) -> SettingError:
    return SettingError(
        f"{KEY}: {path} has the key {key!r}, which this version does not know: "
        f"{did_you_mean(key.rpartition('.')[2], known)}. The run is of another version; give its settings on "
        "the command line instead"
    )


def _read_yaml(directory: Path, name: str) -> DictConfig:
    path = directory / RECORD / f"{name}.yaml"
    if not directory.is_dir():
        raise SettingError(f"{KEY} is {str(directory)!r}, but there is no such directory; give that of a run")
    if not path.is_file():
        below = ", ".join(one.name for one in runs_below(directory))
        hint = f"it holds the runs {below}: give one of them" if below else "give the directory of a run"
        raise SettingError(
            f"{KEY} is {str(directory)!r}, which holds no record of a run, {RECORD}/{name}.yaml; {hint}"
        )
    try:
        config = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        line = str(error).splitlines()[0]
        raise SettingError(f"{KEY}: {path} cannot be read ({line}); restore it from a copy") from error
    if not isinstance(config, DictConfig):
        raise SettingError(f"{KEY}: {path} is no map of settings; restore it from a copy")
    return config


def _text(config: DictConfig, key: str) -> str | None:
    try:
        value = OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None
    return value if isinstance(value, str) else None


def _containers(
    config: DictConfig, path: Path, *, out_dir: str
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return a configuration as maps, with its interpolations and with what they stand for."""
    raw = OmegaConf.to_container(config, resolve=False)
    config["out_dir"] = out_dir
    try:
        whole = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        line = str(error).splitlines()[0]
        raise SettingError(f"{KEY}: {path} cannot be resolved ({line}); restore it from a copy") from error
    assert isinstance(raw, Mapping)
    assert isinstance(whole, Mapping)
    return raw, whole


def _kept(raw: Mapping[str, Any], values: Mapping[str, Any], *, drops_out_dir: bool) -> dict[str, Any]:
    """Return values without those that a run had none for and, if asked, without places in its directory."""
    kept = {}
    for key, one in raw.items():
        if isinstance(one, Mapping):
            kept[str(key)] = _kept(one, values[key], drops_out_dir=drops_out_dir)
        elif one != "???" and not (drops_out_dir and isinstance(one, str) and _OUT_DIR in one):
            kept[str(key)] = values[key]
    return kept
