"""Every setting that a program declares, and what becomes of a value or a name that is given to it.

`walk` goes through the declarations (vla/registry.py) and a composed configuration side by side, into nested
classes, dictionaries, lists and every entry of a registry. `attempts` tries each number with `VALUES`, with
the bounds of its range and with what lies beyond them, and each map with misspelled keys.

    python tests/experiments/setting_walk.py       (prints all attempts; without the tests' checks of types,
                                                    which take ten times as long as the rest)
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from experiments.config import schema
from experiments.config.plugins import GROUPS
from experiments.config.robot_file import RobotFile
from tests.test_conf import REQUIRED_KEYS, build
from vla.data.hdf5 import Hdf5Mapping
from vla.errors import VLAError
from vla.registry import (
    REQUIRED,
    Choices,
    Range,
    Registry,
    _elements,
    _unwrapped,
    check_settings,
    settings_of,
)

NEEDED: dict[tuple[str, str], tuple[tuple[str, Any], ...]] = {  # by a choice, what has to go with it
    ("env", "tabletop"): (("tasks", []),),
    ("env", "metaworld"): (("tasks", []),),
    ("model.head", "flow"): (("codec", {"kind": "continuous"}),),
    ("model.head", "fast"): (("codec", {"kind": "fast"}),),
    ("codec", "continuous"): (("model.head", {"kind": "flow"}),),
    ("codec", "fast"): (("model.head", {"kind": "fast"}),),
}
MODEL = ("model", "codec", "processor")  # groups of keys
VALUES = (-1, 0, math.nan, math.inf, -math.inf, 1e9, 10**9, -(10**400), 10**400, True, "word")
NUMBERS = {"key": "qpos", "names": ["pan"], "units": ["rad"]}
FILES: dict[str, tuple[type, dict[str, Any]]] = {  # that people write and programs read
    "robot file": (
        RobotFile,
        {
            "name": "arm",
            "control_hz": 30.0,
            "action_convention": "joint_target",
            "gripper_sign": "none",
            "cameras": {"front": [48, 64]},
            "state": {"pan": ["rad", -2.0, 2.0]},
            "action": {"pan": ["rad", -2.0, 2.0]},
            "limits_confirmed": False,
            "limits": {"channels": {"pan": {"low": -2.0, "high": 2.0, "velocity": 1.0}}},
        },
    ),
    "mapping": (
        Hdf5Mapping,
        {
            "robot": "arm",
            "episodes": "",
            "cameras": {"front": {"key": "front"}},
            "state": [NUMBERS],
            "action": [NUMBERS],
            "control_hz": 30.0,
            "action_convention": "joint_target",
            "gripper_sign": "none",
        },
    ),
}


class Attempt(NamedTuple):
    """What was tried, and what came of it.

    Attributes:
        program: or the kind of file.
        kind: value, bound, beyond (a bound), key (that is misspelled) or unbounded (a number without range).
        key: whole key.
        given: the value as text; of a misspelled key, the right name.
        range: of the number, as errors show it.
        message: the refusal; None if it was accepted.
        command: of a number, how it is given on a command line; None where files have to exist for it.
    """

    program: str
    kind: str
    key: str
    given: str
    range: str
    message: str | None
    command: list[str] | None = None


class Found(NamedTuple):
    """A number among the settings, or a map of settings.

    Attributes:
        key: as on the command line.
        parts: what has to be set first, by key: the choice of a part, or the map that the key is in.
        type: int or float; dict for a map.
        range: of a number.
        names: of a map, the settings in it.
        elements: where the number is an element of a list, what the list holds; else None.
        index: of the element.
    """

    key: str
    parts: tuple[tuple[str, Any], ...]
    type: type
    range: Range | None = None
    names: tuple[str, ...] = ()
    elements: list[Any] | None = None
    index: int = 0


def composed_values(root: str) -> dict[str, Any]:
    """Return a program's configuration as Hydra composes it, as plain data."""
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        config = compose(root, REQUIRED_KEYS.get(root, []))
    values: Any = OmegaConf.to_container(config, resolve=True)
    return values


def walk(owner: Callable[..., Any], values: Mapping[str, Any]) -> Iterator[Found]:
    """Yield every number and every map of a program."""
    known = {setting.name for setting in settings_of(owner)}
    for found in _of_owner(owner, values, "", ()):
        parts = [part for part in found.parts if part[0].split(".")[0] in known]  # a check has no model
        yield found._replace(parts=tuple(parts))


def changed(values: dict[str, Any], found: Found, value: Any) -> dict[str, Any]:
    """Return a copy with one number replaced, or with what a map holds."""
    for key, part in found.parts:
        values = _with(values, key.split("."), part)
    if found.elements is not None:
        value = [value if i == found.index else one for i, one in enumerate(found.elements)]
    return _with(values, found.key.split("."), value)


def with_key(values: dict[str, Any], found: Found, name: str) -> dict[str, Any]:
    """Return a copy with one more key in a map."""
    for key, part in found.parts:
        values = _with(values, key.split("."), part)
    return _with(values, [*found.key.split("."), name] if found.key else [name], 1)


def _with(values: Any, key: list[str], value: Any) -> Any:
    if not key:
        return value
    values = values if isinstance(values, dict) else {}
    return {**values, key[0]: _with(values.get(key[0]), key[1:], value)}


def attempts(program: str) -> Iterator[Attempt]:
    """Try everything in a program, or in a file of `FILES`."""
    owner = FILES[program][0] if program in FILES else schema.ROOTS.get(program)
    values = FILES[program][1] if program in FILES else composed_values(program)
    assert refusal(owner, values) is None, refusal(owner, values)
    for found in walk(owner, values):
        if found.type is dict:
            for name in found.names:
                wrong = misspelled(name)
                given, key = with_key(values, found, wrong), f"{found.key}.{wrong}" if found.key else wrong
                yield Attempt(program, "key", key, name, "", refusal(owner, given))
        else:
            for kind, value in _tries(found.range):
                message = refusal(owner, changed(values, found, value))
                is_of_model = program == "train" and found.key.split(".")[0] in MODEL
                if message is None and kind == "bound" and is_of_model:
                    message = refusal_of_model(changed(values, found, value))
                command = overrides_of(found, value)
                yield Attempt(program, kind, found.key, str(value), str(found.range), message, command)


def _tries(bounds: Range | None) -> Iterator[tuple[str, Any]]:
    yield from (("value", value) for value in VALUES)
    if bounds is None or bounds.low is None or bounds.high is None:
        yield "unbounded", bounds
        return
    for bound, step in ((bounds.low, -1), (bounds.high, 1)):
        yield "bound", bound
        if math.isfinite(bound):
            yield "beyond", bound + step


def overrides_of(found: Found, value: Any) -> list[str] | None:
    """Return what Hydra has to be given for a number; None if a part has to be chosen with files or names."""
    chosen = []
    for key, part in found.parts:
        kind = (
            [name for at, name in part.items() if at in ("kind", "family")] if isinstance(part, dict) else []
        )
        if len(part) > 1 or (kind and key.replace(".", "/") not in GROUPS):
            return None
        chosen += [f"{key.replace('.', '/')}={name}" for name in kind]
    text = str(value)
    if found.elements is not None:
        text = (
            f"[{','.join(str(value if i == found.index else one) for i, one in enumerate(found.elements))}]"
        )
    return [*chosen, f"{found.key}={text}"]


def misspelled(name: str) -> str:
    """Return a name with a letter doubled, as a slip of the finger makes it."""
    return name[:1] * 2 + name[1:]


def refusal(owner: type, values: dict[str, Any]) -> str | None:
    """Build what a program builds of its configuration at first; return why that is refused, if it is."""
    try:
        if issubclass(owner, schema.Program):
            schema.checked(values, owner)
        else:
            owner(**check_settings(owner, values))
    except VLAError as error:
        return str(error)
    return None


def refusal_of_model(values: dict[str, Any]) -> str | None:
    """Build processor and model, without memory for its weights; return why that is refused, if it is."""
    try:
        build(schema.checked(values, schema.TrainRun))
    except ValueError as error:
        return str(error)
    return None


def _of_owner(owner: Callable[..., Any], values: Mapping[str, Any], at: str, parts: Any) -> Iterator[Found]:
    settings = settings_of(owner)
    yield Found(at, parts, dict, names=tuple(setting.name for setting in settings))
    for setting in settings:
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
                bounds = _unwrapped(one)[1] or constraint
                yield Found(key, parts, number, bounds, elements=held, index=index)
    elif form == "dict":
        for name, element in (value or {"some": None}).items():
            if isinstance(element, Mapping) and isinstance(_unwrapped(inside[0])[1], Registry):
                registry = _unwrapped(inside[0])[1]
                maker = registry.made_by(element[registry.key])
                yield from _of_owner(maker, element, f"{key}.{name}", parts)
                continue
            yield from _of_type(inside[0], constraint, element, f"{key}.{name}", parts)
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
            needed = NEEDED.get((key, name), ())
            yield from _of_owner(maker, part, key, (*parts, (key, part), *needed))


def _minimum(owner: Callable[..., Any]) -> dict[str, Any]:
    """Return something for each setting without a default."""
    needed = [one for one in settings_of(owner) if one.default is REQUIRED]
    return {one.name: -1.0 if one.name == "low" else _example(one.type, one.constraint) for one in needed}


def _example(annotation: Any, constraint: Any) -> Any:
    """Return something that a setting may be."""
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


if __name__ == "__main__":
    for program in (*schema.ROOTS.names(), *FILES):
        for attempt in attempts(program):
            print(json.dumps(attempt))
