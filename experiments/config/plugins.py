"""Plug-ins: modules of the user that add environments, robots and other parts by name, our files unchanged.

    # my_toy.py
    from envs.registry import ENVIRONMENTS
    ENVIRONMENTS.add("toy", "my_toy:ToyEnv")

    python -m experiments.evaluate plugins=[my_toy] env=toy path=outputs/train/toy

A plug-in is named as Python imports it, or by the path of its file or package:
``plugins=[../lab/my_toy.py]``.
Hydra learns of what they add before it composes a configuration, hence from the command line.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from envs.registry import ENVIRONMENTS
from experiments.config.robot import ROBOTS
from vla.data.registry import SOURCES
from vla.model.registry import BACKBONES, HEADS
from vla.plugins import plugin_version
from vla.processing.registry import CODECS
from vla.registry import Registry, SettingError, absolute_path, import_plugin

KEY, FORMER_KEY = "plugins", "extensions"
PLUGIN_HINT = "if a plug-in of yours adds it, pass plugins=[<its module or file>]"
CONF = Path(__file__).parents[2] / "conf"
GROUPS: Mapping[str, Registry[Any]] = {  # by Hydra's group
    "env": ENVIRONMENTS,
    "robot": ROBOTS,
    "data": SOURCES,
    "codec": CODECS,
    "model/backbone": BACKBONES,
    "model/head": HEADS,
}


def load_plugins(plugins: Sequence[str]) -> None:
    """Import plug-ins, and offer what they add as options of Hydra's groups: `env=toy`, `robot=toy`.

    Args:
        plugins: names of modules, or paths of Python files or packages.

    Raises:
        SettingError: there is no such module or file, it raised while it was imported (also where it adds a
            name that stands for something else), or another module of its name is found first.
        NotInstalled: it needs a package of one of our extras.
    """
    for plugin in plugins:
        name = module_of(plugin)
        try:
            import_plugin(name, wanted_by=KEY)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if not f"{name}.".startswith(f"{missing}."):
                raise SettingError(
                    f"{KEY} names {plugin!r}, which needs the package {missing!r}; install it, or leave the "
                    "plug-in out"
                ) from error
            raise SettingError(
                f"{KEY} names {plugin!r}, but there is no module {missing!r}; give a module that Python "
                "finds from this directory or on PYTHONPATH, or the path of a file"
            ) from error
    offer_parts()


def module_of(plugin: str) -> str:
    """Return the name under which a plug-in is imported; the folder of a path is added to `sys.path`.

    The folder comes last, so that its files hide nothing; worker processes look into it too.

    Raises:
        SettingError: there is no such file, its name cannot be imported, or another module has it.
    """
    if not (plugin.endswith(".py") or "/" in plugin or os.sep in plugin):
        return plugin
    path = Path(absolute_path(plugin)).resolve()
    file, name = (path / "__init__.py" if path.is_dir() else path), path.stem
    if not file.is_file():
        inside = sorted(one.name for one in path.glob("*.py")) if path.is_dir() else []
        hint = f"; give one of {', '.join(inside)}" if inside else "; give a file, such as mylab.py"
        raise SettingError(f"{KEY} names {plugin!r}, but there is no file {file}{hint}")
    if file.suffix != ".py" or not name.isidentifier():
        raise SettingError(f"{KEY} names {plugin!r}, which Python cannot import; call it such as mylab.py")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
        importlib.invalidate_caches()
    found = importlib.util.find_spec(name)
    origin = None if found is None else found.origin
    if origin is None or Path(origin).resolve() != file:
        raise SettingError(
            f"{KEY} names {plugin!r}, but {name!r} is {origin or 'another module'} here already, and two "
            "modules of one name cannot be told apart; rename one"
        )
    return name


def recorded_plugins(plugins: Sequence[str]) -> dict[str, str | None]:
    """Return what provenance keeps of plug-ins that were loaded: versions, or None, by name of the module."""
    return {name: plugin_version(name) for name in map(module_of, plugins)}


def offer_parts() -> None:
    """Make the parts that have no file in `conf/` options of Hydra's groups, with their defaults."""
    for group, registry in GROUPS.items():
        for name in registry.names():
            if not (CONF / group / f"{name}.yaml").is_file():
                ConfigStore.instance().store(group=group, name=name, node={registry.key: name})


def plugins_in(arguments: Sequence[str]) -> list[str]:
    """Return the plug-ins that a command line names: ``plugins=[my_toy, ../lab/my_robot.py]``.

    Raises:
        SettingError: they are no list of names.
    """
    keys = [text.lstrip("+").partition("=")[0] for text in arguments]
    if FORMER_KEY in keys:
        raise SettingError(f"unknown key {FORMER_KEY!r}; it is now {KEY}=[my_module]")
    given = [text for key, text in zip(keys, arguments, strict=True) if key == KEY]
    names = [OverridesParser.create().parse_override(text).value() for text in given]
    if not names:
        return []
    if not isinstance(names[-1], list) or not all(isinstance(name, str) for name in names[-1]):
        raise SettingError(f"{KEY} is {names[-1]!r}; give a list of modules or paths: {KEY}=[my_module]")
    return [str(name) for name in names[-1]]
