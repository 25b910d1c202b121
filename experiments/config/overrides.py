"""Values as Hydra overrides: `key=value`, read back as what they are."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException


def overrides(values: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """Return values as Hydra overrides.

    >>> overrides({"tasks": ["reach", "lift"], "level": "train", "path": "a=b"}, prefix="x.")
    ['x.tasks=[reach,lift]', 'x.level=train', "x.path='a=b'"]
    """
    return [f"{prefix}{key}={_as_override(value)}" for key, value in values.items()]


def leaves(values: Mapping[str, Any], *, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested maps by whole key; lists and empty maps are values.

    >>> dict(leaves({"env": {"level": "none", "cameras": ["wrist"]}, "tasks": []}))
    {'env.level': 'none', 'env.cameras': ['wrist'], 'tasks': []}
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, prefix=f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def as_value(text: str) -> str:
    """Return a text as the value of an override that Hydra reads it back from: in quotes where it needs them.

    >>> as_value("outputs/one"), as_value("a,b")
    ('outputs/one', "'a,b'")
    """
    try:
        override = OverridesParser.create().parse_override(f"key={text}")
        is_whole = not override.is_sweep_override() and override.value() == text
        is_plain = is_whole and not text.endswith("\\")  # in a list, it would take the comma with it
    except HydraException:
        is_plain = False
    return text if is_plain else QuotedString(text=text, quote=Quote.single).with_quotes()


def _as_override(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_as_override, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{as_value(str(key))}:{_as_override(one)}' for key, one in value.items())}}}"
    if isinstance(value, str | Path):
        return as_value(str(value))
    return "null" if value is None else str(value)
