"""Modules of the user that add environments, robots and other parts by name, without a change to our files.

    # my_toy.py
    from envs.registry import ENVIRONMENTS
    ENVIRONMENTS.add("toy", "my_toy:ToyEnv")

    python -m experiments.evaluate extensions=[my_toy] env=toy path=outputs/train/toy

Hydra learns of what they add before it composes a configuration, hence from the command line.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from envs.registry import ENVIRONMENTS
from experiments.config.robot import ROBOTS
from vla.data.registry import SOURCES
from vla.model.registry import BACKBONES, HEADS
from vla.processing.registry import CODECS
from vla.registry import Registry, SettingError

KEY = "extensions"
CONF = Path(__file__).parents[2] / "conf"
GROUPS: Mapping[str, Registry[Any]] = {  # by Hydra's group
    "env": ENVIRONMENTS,
    "robot": ROBOTS,
    "data": SOURCES,
    "codec": CODECS,
    "model/backbone": BACKBONES,
    "model/head": HEADS,
}


def load_extensions(names: Sequence[str]) -> None:
    """Import modules, and offer what they add as options of Hydra's groups: `env=toy`, `robot=toy`.

    Raises:
        SettingError: there is no such module.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise SettingError(
                f"{KEY} names {name!r}, but there is no module {error.name!r}; give a module that Python "
                "finds from this directory or on PYTHONPATH"
            ) from error
    offer_parts()


def offer_parts() -> None:
    """Make the parts that have no file in `conf/` options of Hydra's groups, with their defaults."""
    for group, registry in GROUPS.items():
        for name in registry.names():
            if not (CONF / group / f"{name}.yaml").is_file():
                ConfigStore.instance().store(group=group, name=name, node={registry.key: name})


def extensions_in(arguments: Sequence[str]) -> list[str]:
    """Return the modules that a command line names: ``extensions=[my_toy, my_robot]``.

    Raises:
        SettingError: they are no list of names.
    """
    given = [text for text in arguments if text.lstrip("+").partition("=")[0] == KEY]
    names = [OverridesParser.create().parse_override(text).value() for text in given]
    if not names:
        return []
    if not isinstance(names[-1], list) or not all(isinstance(name, str) for name in names[-1]):
        raise SettingError(f"{KEY} is {names[-1]!r}; give a list of modules: {KEY}=[my_module]")
    return names[-1]
