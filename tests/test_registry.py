import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pytest

from vla.registry import (
    REQUIRED,
    Choices,
    Range,
    Registry,
    SettingError,
    check_attributes,
    check_settings,
    did_you_mean,
    settings_of,
)


class Blur:
    def __init__(self, *, radius: Annotated[int, Range(0), "pixels"] = 1) -> None:
        self.radius = radius


class Tool:
    """One setting of every type, and a part."""

    def __init__(
        self,
        *,
        size: Annotated[int, Range(1), "how large"],
        rate: Annotated[float, Range(0, open_low=True), "how fast [1/s]"] = 1.0,
        share: Annotated[float | None, Range(0, 1, open_high=True)] = None,
        limit: Annotated[float, Range(0, math.inf)] = math.inf,
        mode: Annotated[str, Choices("fast", "full"), "which way"] = "fast",
        shiny: Annotated[bool, "whether it shines"] = False,
        widths: Annotated[list[int], Range(1)] = [1, 2],  # noqa: B006
        betas: Annotated[tuple[float, float], Range(0, 1, open_high=True)] = (0.9, 0.98),
        names: Annotated[Sequence[Annotated[str, Choices("a", "b")]], "names"] = (),
        gains: Annotated[Mapping[str, float], Range(0)] = {},  # noqa: B006
        blur: Annotated[Blur | None, "none: sharp"] = None,
        blurs: Annotated[dict[str, Blur], "by name"] = {},  # noqa: B006
        anything: Annotated[dict[str, Any], "passed on"] = {},  # noqa: B006
        part: object = None,
    ) -> None:
        self.given = {name: value for name, value in locals().items() if name != "self"}

    @classmethod
    def fit(cls, data: list[int], *, size: Annotated[int, Range(1)] = 3) -> "Tool":
        return cls(size=size, part=data)


@dataclass(frozen=True, kw_only=True)
class Plain:
    width: Annotated[int, Range(1), "pixels"]
    tags: Annotated[list[str], "labels"] = field(default_factory=list)
    note: str = ""

    def __post_init__(self) -> None:
        check_attributes(self, where="plain")


def test_settings_are_the_annotated_parameters():
    settings = {setting.name: setting for setting in settings_of(Tool)}
    assert "part" not in settings
    size = settings["size"]
    assert (size.type, size.default, size.constraint, size.help) == (int, REQUIRED, Range(1), "how large")
    assert size.allowed == "an integer >= 1"
    assert settings["share"].allowed == "a number in [0, 1), or null"
    assert settings["mode"].allowed == "fast | full"
    assert settings["widths"].allowed == "a list, each an integer >= 1"


def test_dataclasses_and_classmethods_declare_settings_too():
    width, tags = settings_of(Plain)
    assert (width.name, width.default, tags.name, tags.default) == ("width", REQUIRED, "tags", [])
    assert [setting.name for setting in settings_of(Tool.fit)] == ["size"]


def test_a_type_that_no_configuration_can_hold_is_refused():
    def bad(*, thing: Annotated[set[int], "no"] = set()) -> None:  # noqa: B006
        pass

    def quoted(*, thing: "Annotated[int, 'no']" = 1) -> None:
        pass

    with pytest.raises(TypeError, match=r"bad\.thing has type"):
        settings_of(bad)
    with pytest.raises(TypeError, match="without quotes"):
        settings_of(quoted)


GOOD = [
    ("size", 3, 3),
    ("size", np.int64(3), 3),
    ("rate", 2, 2.0),
    ("share", None, None),
    ("share", 0, 0.0),
    ("limit", math.inf, math.inf),
    ("mode", "full", "full"),
    ("shiny", True, True),
    ("widths", (3, 4), [3, 4]),
    ("betas", [0.5, 0.6], (0.5, 0.6)),
    ("names", ["a", "b"], ("a", "b")),
    ("gains", {"x": 1}, {"x": 1.0}),
    ("blur", None, None),
    ("anything", {"x": [1, "y"]}, {"x": [1, "y"]}),
]


@pytest.mark.parametrize(("name", "given", "wanted"), GOOD)
def test_what_is_allowed_arrives_as_declared(name, given, wanted):
    checked = check_settings(Tool, {"size": 1, name: given}, where="tool")
    assert checked[name] == wanted
    assert type(checked[name]) is type(wanted)


BAD = [
    ({"sise": 1}, "unknown key 'tool.sise'; did you mean 'size'"),
    ({"part": 1}, "unknown key 'tool.part'"),
    ({}, "tool.size is missing; give an integer >= 1 .how large"),
    ({"size": 0}, "tool.size is 0; it must be an integer >= 1"),
    ({"size": 1.0}, "tool.size is 1.0; it must be an integer"),
    ({"size": True}, "tool.size is true; it must be an integer"),
    ({"size": None}, "tool.size is null; it must be an integer"),
    ({"size": -(10**400)}, r"tool.size is -10{98}\.\.\.; it must be"),
    ({"size": "1"}, "tool.size is '1'"),
    ({"rate": math.inf}, "tool.rate is inf; it must be finite: a number > 0"),
    ({"rate": math.nan}, "tool.rate is nan; it must be finite"),
    ({"rate": 0.0}, "tool.rate is 0.0; it must be a number > 0"),
    ({"share": 1.0}, r"tool.share is 1.0; it must be a number in \[0, 1\)"),
    ({"limit": math.nan}, "tool.limit is nan"),
    ({"limit": -math.inf}, "tool.limit is -inf"),
    ({"limit": 10**400}, "tool.limit is 1000"),
    ({"mode": "ful"}, "tool.mode is 'ful'; did you mean 'full'. choose from fast, full"),
    ({"mode": 1}, "tool.mode is 1; it must be fast | full".replace("|", r"\|")),
    ({"shiny": 1}, "tool.shiny is 1; it must be true or false"),
    ({"widths": 3}, "tool.widths is 3; it must be a list"),
    ({"widths": "12"}, "tool.widths is '12'"),
    ({"widths": [1, 0]}, r"tool.widths\[1\] is 0; it must be an integer >= 1"),
    ({"betas": [0.5]}, r"tool.betas is \[0.5\]; it must be a list of 2"),
    ({"names": ["a", "c"]}, r"tool.names\[1\] is 'c'; choose from a, b"),
    ({"gains": {"x": -1.0}}, "tool.gains.x is -1.0; it must be a number >= 0"),
    ({"gains": {1: 1.0}}, "tool.gains is"),
    ({"blur": {"radius": -1}}, "tool.blur.radius is -1"),
    ({"blur": {"radios": 1}}, "unknown key 'tool.blur.radios'; did you mean 'radius'"),
    ({"blur": 3}, "tool.blur is 3; it must be a map with keys of Blur"),
    ({"blurs": {"one": {"radius": math.nan}}}, "tool.blurs.one.radius is nan"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_what_is_not_allowed_is_named_with_its_whole_key(values, message):
    given = values if "part" in values or "sise" in values or not values else {"size": 1, **values}
    with pytest.raises(SettingError, match=message) as failure:
        check_settings(Tool, given, where="tool")
    assert "\n" not in str(failure.value)


def test_nested_settings_become_objects():
    checked = check_settings(Tool, {"size": 1, "blur": {"radius": 4}, "blurs": {"one": {}}})
    assert checked["blur"].radius == 4
    assert checked["blurs"]["one"].radius == 1
    blur = Blur()
    assert check_settings(Tool, {"size": 1, "blur": blur})["blur"] is blur


def test_a_dataclass_checks_itself():
    assert Plain(width=2).tags == []
    with pytest.raises(SettingError, match=r"plain\.width is 0"):
        Plain(width=0)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "text"),
    [
        (Range(1), [1, 1e300], [0.999, math.inf, math.nan], ">= 1"),
        (Range(0, 1, open_low=True), [1e-9, 1], [0, 1.1], "in (0, 1]"),
        (Range(high=5, open_high=True), [-1e300, 4.9], [5, -math.inf], "< 5"),
        (Range(0, math.inf), [0, math.inf], [-1, math.nan, -math.inf], "in [0, inf]"),
        (Range(), [-1e300, 0], [math.nan, math.inf], ""),
        (Range(1, 2**31), [2**31], [10**400, 2**31 + 1], "in [1, 2147483648]"),
    ],
)
def test_ranges(bounds, inside, outside, text):
    assert all(value in bounds for value in inside)
    assert not any(value in bounds for value in outside)
    assert str(bounds) == text


def test_a_registry_imports_checks_and_builds():
    tools: Registry[Tool] = Registry("tool", {"plain": f"{__name__}:Tool"})
    tools.add("gone", "no_such_module:Tool")
    assert tools.names() == ("plain", "gone")
    assert tools.get("plain") is Tool
    assert tools.settings("plain") == settings_of(Tool)
    tool = tools.build({"kind": "plain", "size": 2}, part=self_made())
    assert (tool.given["size"], tool.given["part"]) == (2, [7])
    with pytest.raises(SettingError, match=r"model\.tool\.size is 0"):
        tools.build({"kind": "plain", "size": 0}, where="model.tool", part=None)
    with pytest.raises(SettingError, match=r"tool\.kind is 'plane'; did you mean 'plain'"):
        tools.build({"kind": "plane"})
    with pytest.raises(ValueError, match=r"tool 'plane' is unknown; did you mean 'plain'"):
        tools.get("plane")
    with pytest.raises(SettingError, match=r"tool\.kind is missing; choose from plain, gone"):
        tools.build({})
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        tools.get("gone")


TOOLS: Registry[Tool] = Registry("tool", {"plain": f"{__name__}:Tool"}, key="family")


@dataclass(frozen=True, kw_only=True)
class Box:
    data: Annotated[dict[str, Any], TOOLS, "stays data"]
    tool: Annotated[Tool | None, TOOLS, "is built"] = None
    plain: Annotated[Plain | None, "checks itself"] = None

    def __post_init__(self) -> None:
        if len(self.data) > 2:
            raise ValueError("too much data")


def test_a_setting_may_be_a_choice_from_a_registry():
    given = {"family": "plain", "size": 2}
    checked = check_settings(Box, {"data": given, "tool": {"family": "plain", "size": 4}}, where="box")
    assert checked["data"] == given
    assert checked["tool"].given["size"] == 4
    assert check_settings(Box, {"data": given, "tool": None})["tool"] is None
    assert settings_of(Box)[0].allowed == "a map with family: plain"
    assert settings_of(Box)[1].allowed == "a map with family: plain, or null"
    for values, message in [
        ({"data": {"family": "plain", "size": 0}}, r"box\.data\.size is 0"),
        ({"data": {"size": 1}}, r"box\.data\.family is missing; choose from plain"),
        ({"data": {"family": "plane"}}, r"box\.data\.family is 'plane'; did you mean 'plain'"),
        ({"data": 3}, r"box\.data is 3; it must be a map with family"),
        ({"data": given, "plain": {"width": -1}}, r"box\.plain\.width is -1"),
    ]:
        with pytest.raises(SettingError, match=message):
            check_settings(Box, values, where="box")


def test_what_a_part_finds_wrong_gets_its_key():
    def owner(*, box: Annotated[Box, "one"]) -> None:
        pass

    with pytest.raises(SettingError, match=r"^here\.box: too much data$"):
        check_settings(owner, {"box": {"data": {"family": "plain", "size": 2, "rate": 3}}}, where="here")


def self_made() -> list[int]:
    return [7]


def test_a_registry_may_build_with_a_classmethod():
    tools: Registry[Tool] = Registry("tool", {"plain": f"{__name__}:Tool"}, maker="fit")
    assert [setting.name for setting in tools.settings("plain")] == ["size"]
    tool = tools.build({"kind": "plain"}, data=[1, 2])
    assert (tool.given["size"], tool.given["part"]) == (3, [1, 2])


def test_entries_are_added_once_and_by_name():
    tools: Registry[Tool] = Registry("tool", {"plain": f"{__name__}:Tool"})
    tools.add("plain", f"{__name__}:Tool")
    with pytest.raises(ValueError, match="tool 'plain' is already"):
        tools.add("plain", "elsewhere:Tool")
    with pytest.raises(ValueError, match="is no 'module:Class'"):
        tools.add("other", "elsewhere.Tool")
    with pytest.raises(ImportError, match=r"defines no Nothing"):
        Registry("tool", {"x": f"{__name__}:Nothing"}).get("x")


def test_did_you_mean():
    assert did_you_mean("lfit", ["lift", "push"]) == "did you mean 'lift'? choose from lift, push"
    assert did_you_mean("lift", []) == "there are none"
