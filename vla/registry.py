"""Settings declared once, in a constructor's signature, and registries that build parts by name from them.

A parameter annotated as ``Annotated[int, Range(1), "what it is"]`` is a setting: its type, default, range and
help stand there and nowhere else, and `settings_of` reads them for the schema of a configuration, for the
check (`check_settings`) and for help texts. A parameter without `Annotated` is a part that code supplies.

    class Head:
        def __init__(self, *, width: int, depth: Annotated[int, Range(1), "layers"] = 2) -> None: ...

    HEADS: Registry[Head] = Registry("head", {"small": "my_module:Head"})
    head = HEADS.build({"kind": "small", "depth": 3}, width=64)

Types of settings: bool, int, float, str, `Any`, a class that has settings itself, a union with None, and
list, tuple, Sequence, dict and Mapping (from str) of these. Infinity is accepted only where a `Range` names
it as a bound, NaN nowhere. A part that is chosen by name has the registry in its annotation:
``Annotated[Head, HEADS, "..."]`` is built from its data, ``Annotated[dict[str, Any], HEADS, "..."]`` stays
data, checked.
"""

import dataclasses
import functools
import importlib
import inspect
import math
import numbers
import traceback
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, Union

from vla.errors import VLAError, did_you_mean

T = TypeVar("T")

REQUIRED: Any = inspect.Parameter.empty  # the default of a setting that has none
EXTRA_OF = {  # pyproject.toml: package as it is imported -> the extra that brings it
    **dict.fromkeys(("torch", "einops", "safetensors", "onnx", "onnxscript"), "train"),
    **dict.fromkeys(("gymnasium", "mujoco", "mink", "daqp"), "sim"),
    **dict.fromkeys(("pyarrow", "av", "tqdm"), "data"),
    "metaworld": "metaworld",
}
_LONGEST_SHOWN = 100  # characters of a value in an error
_SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "text", Any: "any value"}


class SettingError(VLAError):
    """A setting is unknown, missing, or has a value that its declaration does not allow."""


class UnknownPart(SettingError):
    """A name stands for no part here; a plug-in that was not passed may add it, see vla/plugins.py."""


class NotInstalled(RuntimeError):
    """A part needs a package that is not installed; the message holds the line to run."""


class Constraint:
    """What stands next to a type in `Annotated` and narrows it: a range, choices, or a registry."""


@dataclasses.dataclass(frozen=True)
class Range(Constraint):
    """The numbers from `low` to `high`; every number in a list or dictionary must lie there.

    Args:
        low: least value, or None; ``-math.inf`` accepts negative infinity.
        high: greatest value, or None; ``math.inf`` accepts infinity.
        open_low: whether `low` itself is excluded.
        open_high: whether `high` itself is excluded.
    """

    low: int | float | None = None
    high: int | float | None = None
    open_low: bool = dataclasses.field(default=False, kw_only=True)
    open_high: bool = dataclasses.field(default=False, kw_only=True)

    def __contains__(self, value: int | float) -> bool:
        """Whether a number lies within."""
        is_finite = isinstance(value, numbers.Integral) or math.isfinite(value)  # 10**400 is, and no float
        if not is_finite and value not in (self.low, self.high):
            return False
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        below = self.high is None or (value < self.high if self.open_high else value <= self.high)
        return above and below

    def __str__(self) -> str:
        """Return it as people write it: ``in [0, 1)``, ``> 0``, ``>= 1``."""
        if self.low is None and self.high is None:
            return ""
        low, high = (str(one) if isinstance(one, int | None) else f"{one:g}" for one in (self.low, self.high))
        if self.high is None:
            return f"{'>' if self.open_low else '>='} {low}"
        if self.low is None:
            return f"{'<' if self.open_high else '<='} {high}"
        return f"in {'(' if self.open_low else '['}{low}, {high}{')' if self.open_high else ']'}"


class Choices(Constraint):
    """The strings that a setting may be; of a list, every element."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __str__(self) -> str:
        """Return the choices as people read them."""
        return " | ".join(self.names)


class FilePath(Constraint):
    """A place in the file system; the checked setting is absolute, see `absolute_path`."""

    def resolve(self, path: str) -> str:
        """Return it as an absolute path."""
        return absolute_path(path)


def absolute_path(path: str) -> str:
    """Return a path as every library takes it: absolute, so that no colon in it makes it an address.

    A relative one counts from the working directory, and ``~/`` is the home of the user.
    """
    return str((Path(path).expanduser() if path.startswith("~/") else Path(path)).absolute())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One declared setting.

    Attributes:
        name: of the parameter.
        type: without `Annotated`; elements of lists and dictionaries may be annotated again.
        default: `REQUIRED` if there is none.
        constraint: of its numbers or strings.
        help: what it is, in a few words.
    """

    name: str
    type: Any
    default: Any
    constraint: Constraint | None
    help: str

    @property
    def allowed(self) -> str:
        """What values it may have, in words: ``an integer >= 1``."""
        return _allowed(self.type, self.constraint)


@functools.cache
def settings_of(owner: Callable[..., Any]) -> tuple[Setting, ...]:
    """Return the settings of a class (its constructor), a dataclass, a function or a bound classmethod.

    Raises:
        TypeError: a setting is declared with a type that no configuration can hold.
    """
    fields = {}
    if isinstance(owner, type) and dataclasses.is_dataclass(owner):
        fields = {field.name: field for field in dataclasses.fields(owner)}
    found = []
    for name, parameter in inspect.signature(owner).parameters.items():
        # A dataclass shows its factories as a private object, and a decorator may have replaced its types.
        annotation = fields[name].type if name in fields else parameter.annotation
        if isinstance(annotation, str) and "Annotated[" in annotation:
            raise TypeError(f"{_name_of(owner)}: the annotation of {name!r} is text; write it without quotes")
        if typing.get_origin(annotation) is not Annotated:
            continue
        inner, constraint, text = _unwrapped(annotation)
        default = parameter.default
        if name in fields and fields[name].default_factory is not dataclasses.MISSING:
            default = fields[name].default_factory()  # pyright: ignore[reportCallIssue]
        _require_known_type(annotation, f"{_name_of(owner)}.{name}")
        found.append(Setting(name=name, type=inner, default=default, constraint=constraint, help=text))
    return tuple(found)


def check_settings(
    owner: Callable[..., Any], values: Mapping[str, Any], *, where: str = ""
) -> dict[str, Any]:
    """Check given settings against their declaration, at every depth.

    Args:
        owner: what declares them; see `settings_of`.
        values: by name. Those left out have defaults.
        where: what to call their place in errors: ``trainer`` makes ``trainer.learning_rate``.

    Returns:
        The values as `owner` takes them: whole numbers become floats and lists tuples where those are
        declared, and a mapping becomes the object of a declared class.

    Raises:
        SettingError: a key is unknown or missing, or a value is not allowed. One line, with the whole key.
    """
    settings = {setting.name: setting for setting in settings_of(owner)}
    for key in values:
        if key not in settings:
            raise SettingError(f"unknown key {_key(where, key)!r}; {did_you_mean(key, settings)}")
    checked = {}
    for name, setting in settings.items():
        if name in values:
            checked[name] = _checked(setting.type, values[name], _key(where, name), setting.constraint)
        elif setting.default is REQUIRED:
            about = f" ({setting.help})" if setting.help else ""
            raise SettingError(f"{_key(where, name)} is missing; give {setting.allowed}{about}")
    return checked


def check_attributes(instance: object, *, where: str = "") -> None:
    """Check the settings that an object holds as attributes: for a dataclass's `__post_init__`.

    Raises:
        SettingError: a value is not allowed.
    """
    for setting in settings_of(type(instance)):
        value = getattr(instance, setting.name)
        _checked(setting.type, value, _key(where, setting.name), setting.constraint)


class Registry(Constraint, Generic[T]):
    """Parts that a configuration names: a name stands for a class, which is imported when it is used.

    Args:
        what: what the entries are, for errors: ``head``.
        entries: ``module:Class`` by name.
        maker: the classmethod that builds an entry and declares its settings; the constructor if None.
        key: the key of a configuration that holds the name.
    """

    def __init__(
        self, what: str, entries: Mapping[str, str], *, maker: str | None = None, key: str = "kind"
    ) -> None:
        self.key = key
        self._what, self._maker = what, maker
        self._entries: dict[str, str] = {}
        for name, target in entries.items():
            self.add(name, target)
        self._ours = frozenset(self._entries)

    def names(self) -> tuple[str, ...]:
        """Return the names of all entries, in the order in which they were added."""
        return tuple(self._entries)

    def entries(self) -> dict[str, str]:
        """Return ``module:Class`` by name: what another process adds to have the same entries."""
        return dict(self._entries)

    def add(self, name: str, target: str) -> None:
        """Add an entry; adding the same one twice changes nothing.

        Raises:
            ValueError: the name stands for something else, or the target is not ``module:Class``.
        """
        module, colon, attribute = target.partition(":")
        if not (module and colon and attribute.isidentifier()):
            raise ValueError(f"{self._what} {name!r}: {target!r} is no 'module:Class'")
        if self._entries.get(name, target) != target:
            raise ValueError(
                f"{self._what} {name!r} is already {self._entries[name]}; choose another name for {target}"
            )
        self._entries[name] = target

    def get(self, name: str) -> type[T]:
        """Import and return an entry.

        Raises:
            UnknownPart: there is no such entry; the message names the nearest and all that exist.
            NotInstalled: it needs a package of one of our extras; the message says what to run.
            SettingError: a plug-in's module cannot be imported, or does not define it.
            ImportError: one of our modules cannot be imported, or does not define it.
        """
        if name not in self._entries:
            raise UnknownPart(f"{self._what} {name!r} is unknown; {did_you_mean(name, self._entries)}")
        module_name, _, attribute = self._entries[name].partition(":")
        is_ours = name in self._ours
        try:
            module = (
                importlib.import_module(module_name)
                if is_ours
                else import_plugin(module_name, wanted_by=f"{self._what} {name!r}")
            )
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in EXTRA_OF:
                raise
            raise NotInstalled(
                f"{self._what} {name!r} needs {package}, which is not installed; "
                f"run pip install -e '.[{EXTRA_OF[package]}]' where vla-stack lies"
            ) from error
        if attribute not in vars(module):
            message = f"{self._what} {name!r}: module {module_name} defines no {attribute}"
            if is_ours:
                raise ImportError(message)
            raise SettingError(
                f"{message}; define it in {module.__file__}, or mend the line that adds {name!r}"
            )
        return vars(module)[attribute]

    def settings(self, name: str) -> tuple[Setting, ...]:
        """Return the settings of an entry.

        Raises:
            ValueError, NotInstalled, ImportError: as `get`.
        """
        return settings_of(self.made_by(name))

    def build(self, config: Mapping[str, Any], *, where: str = "", **parts: Any) -> T:
        """Build an entry from ``{"kind": name, **settings}``.

        Args:
            config: data; its settings are checked before anything is built.
            where: what to call it in errors, such as ``model.head``; by default, what the entries are.
            parts: the other arguments, which code supplies.

        Raises:
            SettingError: the name is missing or unknown, or a setting is wrong.
            NotInstalled, ImportError: as `get`.
        """
        arguments = self.check(config, where=where)
        return self.made_by(config[self.key])(**arguments, **parts)

    def check(self, config: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
        """Return the arguments that `build` would pass, without building; see `check_settings`.

        Raises:
            SettingError, NotInstalled, ImportError: as `build`.
        """
        where, choices = where or self._what, ", ".join(self._entries)
        if self.key not in config:
            raise SettingError(f"{_key(where, self.key)} is missing; choose from {choices}")
        name = config[self.key]
        if name not in self._entries:
            hint = did_you_mean(name, self._entries)
            raise UnknownPart(f"{_key(where, self.key)} is {name!r}; {hint}")
        settings = {key: value for key, value in config.items() if key != self.key}
        return check_settings(self.made_by(name), settings, where=where)

    def made_by(self, name: str) -> Callable[..., T]:
        """Return what builds an entry and declares its settings.

        Raises:
            ValueError, NotInstalled, ImportError: as `get`.
        """
        entry = self.get(name)
        return entry if self._maker is None else getattr(entry, self._maker)


def import_plugin(module_name: str, *, wanted_by: str) -> types.ModuleType:
    """Import a module of the user, whose faults are the user's to mend.

    Args:
        module_name: as Python imports it.
        wanted_by: what needs it, for errors: ``plugins``.

    Raises:
        ModuleNotFoundError: it needs a package of one of our extras, or is not there itself.
        SettingError: it raised something; the message names the line.
    """
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever a module may raise
        missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
        if missing and (missing.partition(".")[0] in EXTRA_OF or f"{module_name}.".startswith(f"{missing}.")):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise SettingError(
            f"{wanted_by} needs module {module_name!r}, which raised {reason} at {_place_of(error)}; mend "
            "that line, or leave the plug-in out"
        ) from error


def _place_of(error: BaseException) -> str:
    """Return the file and line that raised, outside of this module and of Python's import machinery."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    others = (__file__, "importlib", "site-packages")
    theirs = [frame for frame in frames if not any(other in frame.filename for other in others)] or frames
    return f"{theirs[-1].filename}:{theirs[-1].lineno}" if theirs else "an unknown line"


def shown(value: Any) -> str:
    """Return a value as an error shows it: as a configuration writes it, cut where it is long."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _key(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _name_of(owner: Callable[..., Any]) -> str:
    """Return what to call an owner of settings: a classmethod by its class."""
    bound_to = getattr(owner, "__self__", None)
    return bound_to.__name__ if isinstance(bound_to, type) else owner.__name__


def _unwrapped(annotation: Any) -> tuple[Any, Constraint | None, str]:
    """Return the type, constraint and help of an `Annotated`; of any other type, nothing but itself."""
    if typing.get_origin(annotation) is not Annotated:
        return annotation, None, ""
    inner, *metadata = typing.get_args(annotation)
    constraint = next((one for one in metadata if isinstance(one, Constraint)), None)
    return inner, constraint, next((one for one in metadata if isinstance(one, str)), "")


def _elements(annotation: Any) -> tuple[str, tuple[Any, ...]]:
    """Return the form of a type and the types in it: ``int | None`` gives ("union", (int,))."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return "union", tuple(one for one in inside if one is not type(None))
    if origin is tuple and inside[-1] is not Ellipsis:
        return "tuple", inside
    if origin in (list, tuple, Sequence):
        return "list", inside[:1]
    if origin in (dict, Mapping):
        return "dict", inside[1:]
    return ("scalar" if annotation in _SCALARS else "class"), ()


def _require_known_type(annotation: Any, name: str) -> None:
    inner, constraint, _ = _unwrapped(annotation)
    if isinstance(constraint, Registry):
        return
    form, inside = _elements(inner)
    for one in inside:
        _require_known_type(one, name)
    if form == "class" and not (isinstance(inner, type) and settings_of(inner)):
        raise TypeError(
            f"setting {name} has type {inner}, which no configuration can hold; see vla/registry.py"
        )


def _allowed(annotation: Any, constraint: Constraint | None) -> str:
    inner, own, _ = _unwrapped(annotation)
    constraint = own or constraint
    form, inside = _elements(inner)
    if isinstance(constraint, Registry) and form != "union":
        return f"a map with {constraint.key}: {' | '.join(constraint.names())}"
    each = " | ".join(_allowed(one, constraint) for one in inside)
    if form == "union":
        return f"{each}, or null" if type(None) in typing.get_args(inner) else each
    if form == "tuple":
        return f"a list of {len(inside)}: {'; '.join(_allowed(one, constraint) for one in inside)}"
    if form == "list":
        return f"a list, each {each}"
    if form == "dict":
        return f"a map from names, each to {each}"
    if form == "class":
        return f"a map with keys of {inner.__name__}"
    if inner is str and isinstance(constraint, Choices):
        return f"{constraint}"
    return f"{_SCALARS[inner]} {constraint}".rstrip() if isinstance(constraint, Range) else _SCALARS[inner]


def _checked(annotation: Any, value: Any, key: str, constraint: Constraint | None) -> Any:
    """Return a value as its declaration wants it, or raise `SettingError` naming the key."""
    inner, own, _ = _unwrapped(annotation)
    constraint = own or constraint
    form, inside = _elements(inner)
    if form == "union":
        return _checked_union(inner, inside, value, key, constraint)
    if isinstance(constraint, Registry):
        return _checked_choice(inner, value, key, constraint)
    if form in ("tuple", "list"):
        return _checked_sequence(annotation, inside, value, key, constraint)
    if form == "dict":
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise _refused(annotation, value, key, constraint)
        return {name: _checked(inside[0], one, f"{key}.{name}", constraint) for name, one in value.items()}
    if form == "class":
        if isinstance(value, inner):
            return value
        if not isinstance(value, Mapping):
            raise _refused(annotation, value, key, constraint)
        arguments = check_settings(inner, value, where=key)
        return _built(lambda: inner(**arguments), key)
    return _checked_scalar(inner, value, key, constraint)


def _checked_choice(wanted: Any, value: Any, key: str, registry: "Registry[Any]") -> Any:
    """Return a part chosen by name: its data if a dictionary is wanted, else the part itself."""
    if isinstance(wanted, type) and isinstance(value, wanted):
        return value
    if not isinstance(value, Mapping):
        raise _refused(wanted, value, key, registry)
    registry.check(value, where=key)
    return dict(value) if _elements(wanted)[0] == "dict" else _built(lambda: registry.build(value), key)


def _built(make: Callable[[], T], key: str) -> T:
    """Return what is made; what it finds wrong with its settings together gets their key."""
    try:
        return make()
    except SettingError:
        raise  # it names the key
    except ValueError as error:
        raise SettingError(f"{key}: {error}") from error


def _checked_union(
    union: Any, inside: tuple[Any, ...], value: Any, key: str, constraint: Constraint | None
) -> Any:
    if value is None and type(None) in typing.get_args(union):
        return None
    if len(inside) == 1 and value is not None:
        return _checked(inside[0], value, key, constraint)
    for one in inside:
        try:
            return _checked(one, value, key, constraint)
        except SettingError:
            continue
    raise _refused(union, value, key, constraint)


def _checked_sequence(
    annotation: Any, inside: tuple[Any, ...], value: Any, key: str, constraint: Constraint | None
) -> Any:
    inner, _, _ = _unwrapped(annotation)
    form, _ = _elements(inner)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise _refused(annotation, value, key, constraint)
    if form == "tuple" and len(value) != len(inside):
        raise _refused(annotation, list(value), key, constraint)
    element_types = inside if form == "tuple" else inside * len(value)
    elements = [
        _checked(one, element, f"{key}[{index}]", constraint)
        for index, (one, element) in enumerate(zip(element_types, value, strict=True))
    ]
    return elements if typing.get_origin(inner) is list else tuple(elements)


def _checked_scalar(scalar: Any, value: Any, key: str, constraint: Constraint | None) -> Any:
    if scalar is Any:
        return value
    if scalar in (int, float):
        wanted = numbers.Integral if scalar is int else numbers.Real  # NumPy's numbers are these too
        bounds = constraint if isinstance(constraint, Range) else Range()
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise _refused(scalar, value, key, constraint)
        number = int(value) if isinstance(value, numbers.Integral) and scalar is int else _as_float(value)
        if number not in bounds:
            raise _refused(scalar, value, key, constraint)
        return number
    if not isinstance(value, scalar):
        raise _refused(scalar, value, key, constraint)
    if isinstance(constraint, Choices) and value not in constraint.names:
        raise SettingError(f"{key} is {value!r}; {did_you_mean(value, constraint.names)}")
    if isinstance(constraint, FilePath):
        if not value:
            raise SettingError(f"{key} is empty; give a path")
        return constraint.resolve(value)
    return value


def _as_float(value: Any) -> float:
    """Return a number as a float; NaN, which no range holds, for an integer beyond all floats."""
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _refused(annotation: Any, value: Any, key: str, constraint: Constraint | None) -> SettingError:
    finite = "finite: " if isinstance(value, float) and not math.isfinite(value) else ""
    return SettingError(f"{key} is {shown(value)}; it must be {finite}{_allowed(annotation, constraint)}")
