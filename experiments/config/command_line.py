"""What a command line gives by hand, and what Hydra composes from it."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from experiments.config.overrides import leaves
from experiments.config.plugins import CONF, GROUPS
from vla.registry import absolute_path

_GLOBAL = "# @package _global_"  # first line of a recipe, which sets any key


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """The arguments of a program.

    Attributes:
        words: as given.
        program: its name.
    """

    words: Sequence[str]
    program: str

    @functools.cached_property
    def _arguments(self) -> Any:
        return get_args_parser().parse_args(list(self.words))

    @functools.cached_property
    def overrides(self) -> list[Override]:
        """Hydra's own settings apart, what is set.

        Raises:
            HydraException: one cannot be read.
        """
        found = OverridesParser.create().parse_overrides(self._arguments.overrides)
        return [one for one in found if not one.key_or_group.startswith("hydra")]

    @property
    def only_shows(self) -> bool:
        """Whether it asks for text in place of a run, such as `--help` and `--cfg`."""
        return bool(self._arguments.cfg or self._arguments.info or self.asks_for_help)

    @property
    def asks_for_help(self) -> bool:
        """Whether it asks for an explanation, of which no setting is a part."""
        return bool(self._arguments.help or self._arguments.hydra_help or self._arguments.shell_completion)

    @property
    def has_own_root(self) -> bool:
        """Whether its configuration begins in another folder than ours."""
        return self._arguments.config_path is not None

    def values(self, key: str) -> list[Any]:
        """Return what a key is set to: none, one value, or those of a sweep."""
        set_to = [one for one in self.overrides if one.key_or_group == key]
        if not set_to:
            return []
        last = set_to[-1]
        return list(last.sweep_iterator()) if last.is_discrete_sweep() else [last.value()]

    def composed(self, *, first: Sequence[str] = ()) -> DictConfig:
        """Return what Hydra makes of it, sweeps left out, with these overrides in front.

        Raises:
            HydraException, OmegaConfBaseException: a key or a choice does not exist.
        """
        given = [one.input_line for one in self.overrides if one.input_line and not one.is_sweep_override()]
        folders = [f"'file://{folder}'" for folder in self._folders()]
        search = [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []
        with initialize_config_module("conf", version_base="1.3"):
            return compose(self._arguments.config_name or self.program, [*search, *first, *given])

    def _folders(self) -> list[Path]:
        folder = self._arguments.config_dir
        return [] if folder is None else [Path(absolute_path(folder))]

    @functools.cached_property
    def choices(self) -> dict[str, str]:
        """The parts chosen by their names in a registry, such as `env=toy`: name by group."""
        return {key: name for key, name in self._given() if name is not None}

    def gives(self, key: str) -> bool:
        """Whether a key is set: by itself, as a part of what is, or by a file of settings that is chosen."""
        return any(key == one or key.startswith(f"{one}.") for one in self._keys)

    @functools.cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(key for key, name in self._given() if name is None)

    def _given(self) -> Iterator[tuple[str, str | None]]:
        """Yield what is set: a group with the name of a registry, or a key with None."""
        for one in self.overrides:
            value = None if one.is_sweep_override() or one.is_delete() else one.value()
            yield from self._chosen(one.key_or_group, value, package=one.package)

    def _chosen(self, key: str, value: Any, *, package: str | None) -> Iterator[tuple[str, str | None]]:
        file = self._file(key, value)
        if key in GROUPS and package is None and value in GROUPS[key].names():
            yield key, str(value)
        elif file is not None and file.read_text(encoding="utf-8").startswith(_GLOBAL):
            yield from self._of_recipe(key, file)
        else:
            yield (key.replace("/", ".") if package is None else package), None

    def _of_recipe(self, group: str, file: Path) -> Iterator[tuple[str, str | None]]:
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        assert isinstance(content, dict), file
        own = {str(key): value for key, value in content.items() if key != "defaults"}
        for entry in content.get("defaults", ()):
            if isinstance(entry, Mapping):
                ((key, value),) = entry.items()
                yield from self._chosen(str(key).removeprefix("override ").lstrip("/"), value, package=None)
            elif entry != "_self_":
                yield from self._chosen(group, entry, package=None)
        for key, _ in leaves(own):
            yield key, None

    def _file(self, group: str, name: Any) -> Path | None:
        """Return the file of an option of a group; None for what is no option with a file."""
        if not isinstance(name, str):
            return None
        paths = [folder / group / f"{name}.yaml" for folder in (CONF, *self._folders())]
        return next((path for path in paths if path.is_file()), None)
