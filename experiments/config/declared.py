"""From the settings that constructors declare (vla/registry.py) to Hydra: its schemas, and help texts.

A schema has the keys and the defaults, so that Hydra refuses a misspelled key, and it has text as a type, so
that `out_dir=2026` is text. Every other value is checked afterward, by `check_settings`, which knows the
ranges: Hydra would turn 2 into true, and its errors do not name what is allowed. A part chosen by name, and
any dictionary, takes every key in Hydra; the check refuses wrong ones.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from vla.registry import REQUIRED, NotInstalled, Registry, Setting, settings_of

_OPEN = dict[str, Any]  # a part chosen by name


_SCHEMAS: dict[type, type] = {}  # by owner: Hydra has to see the same class each time


def schema_of(owner: type) -> type:
    """Return a dataclass for Hydra with the settings of a class, nested ones included.

    It has the name of the class, which Hydra's messages show.
    """
    if owner not in _SCHEMAS:
        fields = [(setting.name, _hydra_type(setting), _default(setting)) for setting in settings_of(owner)]
        _SCHEMAS[owner] = dataclasses.make_dataclass(owner.__name__, fields, kw_only=True)
    return _SCHEMAS[owner]


def keys_of(name: str) -> tuple[str, ...]:
    """Return the keys of the schema of that name; none if there is no such schema."""
    return tuple(
        field.name
        for schema in _SCHEMAS.values()
        if schema.__name__ == name
        for field in dataclasses.fields(schema)
    )


def allowed_in(schema: Any, name: str) -> str | None:
    """Return what values a key of a schema may have, in words; None if that is no schema."""
    for owner, made in _SCHEMAS.items():
        if made is schema:
            return next((one.allowed for one in settings_of(owner) if one.name == name), None)
    return None


def all_keys() -> tuple[str, ...]:
    """Return the keys of all schemas."""
    return tuple(sorted({field.name for schema in _SCHEMAS.values() for field in dataclasses.fields(schema)}))


def whole_keys(owner: Callable[..., Any]) -> tuple[str, ...]:
    """Return all keys of a program as they are written, those of each part that it may choose included."""
    return tuple(sorted({key.partition(" ")[0] for key, _ in rows_of(owner)}))


def schema_node(owner: type) -> DictConfig:
    """Return the schema of a program as Hydra stores it, with dictionaries open to any key."""
    node = OmegaConf.structured(schema_of(owner))
    for setting in settings_of(owner):
        _open_dictionaries(node, setting)
    return node


def _open_dictionaries(node: DictConfig, setting: Setting) -> None:
    if OmegaConf.is_missing(node, setting.name) or not isinstance(node[setting.name], DictConfig):
        return
    child = node[setting.name]
    inner = nested_class(setting)
    if inner is None:
        OmegaConf.set_struct(child, False)
        return
    for nested in settings_of(inner):
        _open_dictionaries(child, nested)


def nested_class(setting: Setting) -> type | None:
    """Return the class whose settings are nested in this one, or nothing."""
    kind = _without_none(setting.type)
    is_class = isinstance(kind, type) and kind not in (bool, int, float, str, list, dict, tuple)
    return kind if is_class and not _is_dictionary(setting) else None


def rows_of(owner: Callable[..., Any], *, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Yield all settings with their whole keys, nested ones after what they are nested in.

    A name that a person chooses is `<name>`: ``robot.limits.channels.<name>.velocity``.
    """
    for setting in settings_of(owner):
        key = f"{prefix}{setting.name}"
        yield key, setting
        inner, registry = nested_class(setting), setting.constraint
        kind = _without_none(setting.type)
        if typing.get_origin(kind) in (dict, Mapping) and not isinstance(registry, Registry):
            key = f"{key}.<name>"
            element = typing.get_args(kind)[1]
            if typing.get_origin(element) is typing.Annotated:
                registry = typing.get_args(element)[1]
            elif isinstance(element, type) and element not in (bool, int, float, str):
                inner = element
        if inner is not None:
            yield from rows_of(inner, prefix=f"{key}.")
        if isinstance(registry, Registry):
            for name in registry.names():
                for nested_key, nested in rows_of_entry(registry, name):
                    yield f"{key}.{nested_key}", nested


def rows_of_entry(registry: Registry[Any], name: str) -> Iterator[tuple[str, Setting]]:
    """Yield the settings of an entry of a registry; none if it is not installed."""
    try:
        maker = registry.made_by(name)
    except (ImportError, NotInstalled):
        return
    for key, setting in rows_of(maker):
        yield f"{key} ({name})", setting


def help_table(owner: type) -> str:
    """Return one line per setting: key, default, what is allowed, and what it is."""
    lines = []
    for key, setting in rows_of(owner):
        default = "required" if setting.default is REQUIRED else f"default {_shown(setting.default)}"
        lines.append((key, f"{setting.allowed}; {default}", setting.help))
    wide = max(len(key) for key, _, _ in lines)
    return "\n".join(f"{key:<{wide}}  {text}\n{'':<{wide}}  {about}".rstrip() for key, text, about in lines)


def _shown(default: Any) -> str:
    if dataclasses.is_dataclass(default):
        return "that of each key"
    return "null" if default is None else str(default)


def _is_dictionary(setting: Setting) -> bool:
    kind = _without_none(setting.type)
    return isinstance(setting.constraint, Registry) or typing.get_origin(kind) in (dict, Mapping)


def _without_none(kind: Any) -> Any:
    """Return the one type of a union with None; any other type as it is."""
    inside = [one for one in typing.get_args(kind) if one is not type(None)]
    is_optional = type(None) in typing.get_args(kind)
    return inside[0] if is_optional and len(inside) == 1 else kind


def _hydra_type(setting: Setting) -> Any:
    if _is_dictionary(setting):
        return _OPEN
    kind = _without_none(setting.type)
    inner = nested_class(setting)
    if inner is not None:
        hydra_type: Any = schema_of(inner)
    elif kind is str or _is_list_of_text(kind):
        hydra_type = str if kind is str else list[str]
    else:
        return Any
    return hydra_type if kind is setting.type else hydra_type | None


def _is_list_of_text(kind: Any) -> bool:
    """Whether it is a list of strings, whatever they may be."""
    elements = [
        typing.get_args(one)[0] if typing.get_origin(one) is typing.Annotated else one
        for one in typing.get_args(kind)
        if one is not Ellipsis
    ]
    return typing.get_origin(kind) is not None and set(elements) == {str}


def _default(setting: Setting) -> Any:
    if _is_dictionary(setting):
        given = {} if setting.default in (REQUIRED, None) else dict(setting.default)
        return dataclasses.field(default_factory=lambda: given)
    inner = nested_class(setting)
    if inner is not None and setting.default is REQUIRED:
        return dataclasses.field(default_factory=schema_of(inner))
    if setting.default is REQUIRED:
        return MISSING
    if isinstance(setting.default, list | tuple):
        return dataclasses.field(default_factory=lambda: list(setting.default))
    if inner is not None and setting.default is not None:
        assert setting.default == inner(), f"{setting.name}: its default must be the defaults of {inner}"
        return dataclasses.field(default_factory=schema_of(inner))
    return setting.default
