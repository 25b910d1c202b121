"""Every setting that a program declares, and what becomes of a value that is given to it.

`walk` goes through the declarations (vla/registry.py) and a composed configuration side by side: into nested
classes, dictionaries, lists, and every entry of a registry whose parts are installed. What it finds can be set
as Hydra sets it, in a copy of the configuration.
"""

import copy
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from experiments.config import schema
from vla.registry import REQUIRED, Choices, Range, Registry, _elements, _unwrapped, settings_of

REQUIRED_KEYS = {  # what a person has to give
    "check": ["dataset=d"],
    "evaluate": ["path=p"],
    "export": ["checkpoint=c"],
    "compare": ["a=a", "b=b"],
    "sweep_table": ["runs=[a]"],
    "benchmark": ["part=data"],
    "delay_table": ["bundle=b"],
    "serve": ["bundle=b"],
    "convert": ["source=s", "dataset=d", "mapping=aloha"],
}


class Found(NamedTuple):
    """A setting, or an element of one, that holds a number or a map.

    Attributes:
        key: as on the command line.
        parts: what has to be set first, by key: the choice of a part, or the map that the key is in.
        type: int, float or dict.
        range: of a number.
        value: that it has now, None for a list or map that is empty.
        container: whole value that holds the element, if `key` is a list's: what to set with `index`.
        index: of the element.
        names: of a map: its keys.
    """

    key: str
    parts: tuple[tuple[str, Any], ...]
    type: type
    range: Range | None = None
    container: list[Any] | None = None
    index: int = 0


def compose_program(root: str) -> DictConfig:
    """Return a program's configuration as Hydra composes it."""
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        return compose(root, REQUIRED_KEYS.get(root, []))


def walk(root: str, config: DictConfig) -> Iterator[Found]:
    """Yield every number and every map of a program."""
    values = OmegaConf.to_container(config, resolve=True)
    yield from _of_owner(schema.ROOTS.get(root), values, "", ())


def changed(config: DictConfig, found: Found, value: Any) -> DictConfig:
    """Return a copy with one number replaced."""
    result = copy.deepcopy(config)
    for key, part in found.parts:
        OmegaConf.update(result, key, part, merge=False, force_add=True)
    if found.container is not None:
        value = [value if i == found.index else one for i, one in enumerate(found.container)]
    OmegaConf.update(result, found.key, value, merge=True)
    return result


def _of_owner(owner: Callable[..., Any], values: Mapping[str, Any], at: str, parts: Any) -> Iterator[Found]:
    yield Found(at, parts, dict)
    for setting in settings_of(owner):
        key = f"{at}.{setting.name}" if at else setting.name
        value = values.get(setting.name, None if setting.default is REQUIRED else setting.default)
        yield from _of_type(setting.type, setting.constraint, value, key, parts)


def _of_type(annotation: Any, constraint: Any, value: Any, key: str, parts: Any) -> Iterator[Found]:
    inner, own, _ = _unwrapped(annotation)
    constraint = own or constraint
    form, inside = _elements(inner)
    if form == "union":
        for one in inside:
            yield from _of_type(one, constraint, value, key, parts)
    elif isinstance(constraint, Registry):
        yield from _of_registry(constraint, value, key, parts)
    elif form in ("tuple", "list"):
        held = list(value or [_example(one, constraint) for one in inside])
        for index, one in enumerate(inside if form == "tuple" else inside * len(held)):
            number = _unwrapped(one)[0]
            if number in (int, float):
                yield Found(key, parts, number, _unwrapped(one)[1] or constraint, held, index)
    elif form == "dict":
        yield Found(key, parts, dict)
        one = inside[0]
        held = value or {"some": None}
        for name, element in held.items():
            yield from _of_type(one, constraint, element, f"{key}.{name}", parts)
    elif form == "class":
        if not isinstance(value, Mapping):
            value = _minimum(inner) if value is None else {}  # an object has its defaults
            parts = (*parts, (key, value))
        yield from _of_owner(inner, value, key, parts)
    elif inner in (int, float):
        yield Found(key, parts, inner, constraint)


def _of_registry(registry: Registry[Any], value: Any, key: str, parts: Any) -> Iterator[Found]:
    for name in registry.names():
        maker = registry.made_by(name)
        if isinstance(value, Mapping) and value.get(registry.key) == name:
            yield from _of_owner(maker, value, key, parts)
        else:
            part = {registry.key: name, **_minimum(maker)}
            yield from _of_owner(maker, part, key, (*parts, (key, part)))


def _minimum(owner: Callable[..., Any]) -> dict[str, Any]:
    """Return something for each setting without a default."""
    return {
        one.name: _example(one.type, one.constraint) for one in settings_of(owner) if one.default is REQUIRED
    }


def _example(annotation: Any, constraint: Any) -> Any:
    inner, own, _ = _unwrapped(annotation)
    constraint = own or constraint
    form, inside = _elements(inner)
    if form == "union":
        return _example(inside[0], constraint)
    if isinstance(constraint, Registry):
        name = constraint.names()[0]
        return {constraint.key: name, **_minimum(constraint.made_by(name))}
    if form in ("tuple", "list"):
        return [_example(one, constraint) for one in inside]
    if form == "dict":
        return {}
    if form == "class":
        return _minimum(inner)
    if isinstance(constraint, Choices):
        return constraint.names[0]
    return {bool: False, int: 16, float: 0.5, str: "text"}[inner]
