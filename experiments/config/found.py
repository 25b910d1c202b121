"""What a program can be given for a path or a name that is missing or wrong, found beneath `outputs/`."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.config.declared import rows_of
from experiments.config.plugins import CONF
from policies.pretrained_names import policy_path, require_pretrained
from vla.errors import did_you_mean
from vla.registry import Constraint, FilePath, Setting, SettingError, settings_of

OUTPUTS = Path("outputs")  # of the working directory, where all default directories are
_DEPTH, _MOST_SHOWN = 4, 5  # folders below OUTPUTS that are looked into; what a message names
_PASSED_OVER = ("cache", "videos", "actions")


class Offered(Constraint):
    """A text with names to choose from that are found in files, besides others that are allowed.

    Args:
        names: returns them.
    """

    def __init__(self, names: Callable[[], list[str]]) -> None:
        self.names = names


class Artifact(FilePath):
    """A directory that a program reads and another has made.

    Args:
        kind: what it is, with its article.
        marks: patterns, of which one matches something in such a directory.
        made_by: what makes one: a command.
    """

    def __init__(self, kind: str, *marks: str, made_by: str) -> None:
        self.kind, self.marks, self.made_by = kind, marks, made_by

    def is_at(self, path: Path) -> bool:
        """Whether a directory looks like one."""
        return any(next(path.glob(mark), None) is not None for mark in self.marks)

    def found(self, folder: Path = OUTPUTS) -> list[str]:
        """Return those below a folder, the newest first, as paths that a command line takes."""
        return [str(path) for path in sorted(self._below(folder), key=_age, reverse=True)]

    def _below(self, top: Path) -> Iterator[Path]:
        """Yield those below a folder, and look into none of them."""
        for folder, names, _ in os.walk(top):
            here = Path(folder)
            is_one, is_deep = self.is_at(here), len(here.relative_to(top).parts) >= _DEPTH
            inside = [] if is_one or is_deep else names
            names[:] = [name for name in inside if not name.startswith(".") and name not in _PASSED_OVER]
            if is_one:
                yield here

    def offer(self) -> str:
        """Return those below `outputs/` in words, and what makes one."""
        found = self.found()
        if not found:
            return f"{OUTPUTS}/ holds none; {self.made_by} makes one"
        more = len(found) - _MOST_SHOWN
        return f"{OUTPUTS}/ holds {', '.join(found[:_MOST_SHOWN])}" + (
            f" and {more} more" if more > 0 else ""
        )


class PolicyArtifact(Artifact):
    """A policy that a program reads; `pretrained/<name>` is one that comes with the repository."""

    def resolve(self, path: str) -> str:
        """Return its place as an absolute path."""
        return policy_path(path)


DATASET = Artifact("a dataset", "meta/info.json", made_by="python -m experiments.collect")
CHECKPOINT = PolicyArtifact("a training run", "checkpoints/step_*", made_by="python -m experiments.train")
BUNDLE = Artifact("a bundle", "policy.onnx", made_by="python -m experiments.export")
POLICY = PolicyArtifact(
    "a training run or a bundle", *CHECKPOINT.marks, *BUNDLE.marks, made_by=CHECKPOINT.made_by
)
EVALUATION = Artifact(
    "an evaluation", "*/plan.json", "evaluation/*/plan.json", made_by="python -m experiments.evaluate"
)
RUN = Artifact(
    "a run or a sweep",
    *("metrics.jsonl", "*/plan.json", "*/metrics.jsonl", "*/*/plan.json"),
    made_by="python -m experiments.train --multirun",
)


def no_value(key: str, program: type) -> str:
    """Return the message for a setting that has to be given and is not.

    Args:
        key: whole key.
        program: the class that declares the program's settings.
    """
    setting = next((one for whole, one in rows_of(program) if whole == key), None)
    if setting is None:
        return f"{key} has no value; give {key}=<value>"
    constraint = setting.constraint
    if isinstance(constraint, Artifact):
        return f"{key} has no value; give {key}=<{constraint.kind}>: {constraint.offer()}"
    if isinstance(constraint, Offered):
        return f"{key} has no value; give {key}=<{setting.help}>: {', '.join(constraint.names())}"
    if isinstance(constraint, FilePath):
        return f"{key} has no value; give {key}=<path>: {setting.help}"
    return f"{key} has no value; give {key}=<{setting.allowed}>"


def shipped_mappings() -> list[str]:
    """Return the names of the mappings in `conf/convert`."""
    return sorted(path.stem for path in (CONF / "convert").glob("*.yaml"))


def require_there(run: Any) -> None:
    """Check that what a run reads is there, before it makes anything.

    Args:
        run: of a program, typed.

    Raises:
        SettingError: a directory is missing; the message names the nearest and what there is.
    """
    for setting in settings_of(type(run)):
        for key, path in _paths_of(run, setting):
            assert isinstance(setting.constraint, Artifact)
            require_directory(key, path, setting.constraint)


def require_directory(key: str, path: Path, artifact: Artifact) -> None:
    """Check that something is where a setting says.

    Args:
        key: of the setting.
        path: that it has.
        artifact: what is expected there.

    Raises:
        NoPretrainedPolicy: it is the short name of a policy that does not come with the repository.
        SettingError: nothing is; the message names the nearest and what there is.
    """
    require_pretrained(path)
    if not path.exists():
        raise SettingError(_not_there(key, path, artifact))


def _paths_of(run: Any, setting: Setting) -> Iterator[tuple[str, Path]]:
    if isinstance(setting.constraint, Artifact):
        value = getattr(run, setting.name)
        if isinstance(value, str):
            yield setting.name, Path(value)
        for i, one in enumerate(value if isinstance(value, list) else ()):
            yield f"{setting.name}[{i}]", Path(one)


def _not_there(key: str, path: Path, artifact: Artifact) -> str:
    beside = sorted(one for one in _children(path.parent) if artifact.is_at(one))
    text = f"{key} is {str(path)!r}, which does not exist"
    if beside:
        return f"{text}; {did_you_mean(path.name, [one.name for one in beside])} in {path.parent}"
    return f"{text}; give {artifact.kind}: {artifact.offer()}"


def _children(folder: Path) -> list[Path]:
    return [one for one in folder.iterdir() if one.is_dir()] if folder.is_dir() else []


def _age(path: Path) -> float:
    return path.stat().st_mtime
