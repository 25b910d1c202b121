"""The files and commands of the page on plug-ins, section by section."""

import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "experiments" / "plugins" / "README.md").read_text(encoding="utf-8")


class Section(NamedTuple):
    """What a reader copies: files by name, and the words of each command."""

    files: dict[str, str]
    commands: list[list[str]]


def section(heading):
    """Return the files and commands of a section; the first line of a file is its name."""
    (part,) = [one for one in re.split(r"^## ", PAGE, flags=re.MULTILINE) if one.startswith(f"{heading}\n")]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL)
    files = {}
    for language, text in blocks:
        named = re.match(r"# (\w+\.\w+)\n", text)
        if language in ("python", "yaml") and named:
            files[named[1]] = text
    lines = [line for language, text in blocks if language == "bash" for line in text.splitlines()]
    return Section(files, [shlex.split(line, comments=True) for line in lines])


def imported(heading, folder, monkeypatch):
    """Write the files of a section and return the module of the first; the caller restores registries."""
    files = section(heading).files
    for name, text in files.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    name = Path(next(iter(files))).stem
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)
