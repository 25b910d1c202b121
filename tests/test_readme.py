"""What the README says is so: its commands parse, its snippets run, its tree is the tree."""

import re
import shlex
import textwrap
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from experiments.config import schema
from vla.data.lerobot_v3 import Dataset

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
TREE_TOPS = ("vla", "envs", "policies", "experiments")


def blocks(language):
    """Return the contents of the fenced blocks of a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    return [content for kind, content in fenced if kind == language]


def commands():
    """All commands, from blocks and from the text, without comments; those with placeholders left out."""
    lines = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    lines += re.findall(r"`(python -m experiments\.[^`]+)`", TEXT)
    return [line for line in lines if line.startswith("python -m experiments.") and "<" not in line]


def tree():
    """Return the paths of the tree, folders with a closing slash, and their comments."""
    (block,) = [block for block in blocks("") if block.startswith("vla/\n")]
    found, parents = {}, []
    for line in block.splitlines():
        name, _, comment = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], name]
        found["".join(parents)] = comment.strip()
    return found


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(command):
    words = shlex.split(command)
    program = words[2].removeprefix("experiments.")
    overrides = [word for word in words[3:] if word != "--multirun"]
    if "--multirun" in words:  # a sweep: each value by itself
        overrides = [re.sub(r"=([^\[,]+),.*", r"=\1", word) for word in overrides]
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        schema.typed(compose(program, overrides), schema.ROOTS[program])


def test_every_program_is_shown():
    assert {shlex.split(command)[2].removeprefix("experiments.") for command in commands()} >= {
        *schema.ROOTS
    } - {"quickstart"}


def test_make_has_the_targets_that_are_named():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", TEXT):
        if target in ("setup", "quickstart", "test", "format", "lint", "clean"):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    assert {"quickstart", "test"} <= set(re.findall(r"make ([a-z-]+)", TEXT))


def test_the_recording_snippet_makes_a_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (snippet,) = [block for block in blocks("python") if "DatasetWriter" in block]
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})
    dataset = Dataset(tmp_path / "outputs/datasets/my_arm")
    assert dataset.num_episodes == 3
    assert dataset.instructions == ["turn the joint"]


@pytest.mark.parametrize("snippet", blocks("python"))
def test_snippets_compile(snippet):
    compile(textwrap.dedent(snippet), "README.md", "exec")


def test_the_tree_has_a_line_for_each_module_and_none_too_many():
    named = tree()
    for path in named:
        assert (ROOT / path).exists(), f"README names {path}, which does not exist"
    modules = {
        str(path.relative_to(ROOT))
        for top in TREE_TOPS
        for path in (ROOT / top).rglob("*.py")
        if path.name != "__init__.py" and not path.name.startswith(".")
    }
    assert modules <= set(named), f"README's tree lacks {sorted(modules - set(named))}"
    without = [path for path, comment in named.items() if path.endswith(".py") and not comment]
    assert not without, f"no comment: {without}"


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:vla|envs|policies|experiments|conf|tests)/[\w/]+\.(?:py|yaml))`", TEXT):
        assert (ROOT / path).exists(), path


def test_no_result_names_a_path_of_one_machine():
    results = ROOT / "experiments" / "results"
    pages = [path for path in results.rglob("*") if path.suffix in (".md", ".json")]
    assert pages
    for path in pages:
        found = re.search(r"(?<![\w.])/(?:root|home|tmp|work|Users)/\S*", path.read_text(encoding="utf-8"))
        assert found is None, f"{path.name}: {found.group() if found else ''}"
