"""What the pages say is so: commands compose, snippets run, links lead somewhere, file lists are complete.

A page is README.md or the README.md of a folder; all of them are read.
"""

import re
import shlex
import textwrap
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from experiments.config import schema
from experiments.config.robot_file import read_robot_file, require_confirmed_limits
from vla.data.lerobot_v3 import Dataset

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
FOLDERS = ("vla", "envs", "policies", "experiments")
NAMES = (
    "README.md",
    *(f"{folder}/README.md" for folder in (*FOLDERS, "experiments/results", "experiments/plugins")),
)
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
MOST_LINES, FIRST_CODE_BEFORE_LINE = 180, 30  # of README.md


def blocks(text, language):
    """Return the contents of the fenced blocks of a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [content for kind, content in fenced if kind == language]


def typed_lines(text):
    """Return what a reader would type: lines of bash blocks and commands in the text, without comments."""
    lines = [line.split("#")[0].strip() for block in blocks(text, "bash") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`((?:python -m experiments\.|make )[^`]+)`", prose)
    return [line for line in lines if line]


def commands():
    """Return page and command of each call of a program; those with placeholders are left out.

    Those with plug-ins too, which tests/plugins carries out.
    """
    return [
        (name, re.sub("^vla ", "python -m experiments.", line))
        for name, text in PAGES.items()
        for line in typed_lines(text)
        if line.startswith(("python -m experiments.", "vla ")) and "<" not in line and "plugins=" not in line
    ]


def snippets():
    """Return page and content of each block of Python."""
    return [(name, block) for name, text in PAGES.items() for block in blocks(text, "python")]


def tree(folder):
    """Return the paths of a folder's file list, folders with a closing slash, and their comments."""
    (block,) = [
        block for block in blocks(PAGES[f"{folder}/README.md"], "") if block.startswith(f"{folder}/\n")
    ]
    found, parents = {}, []
    for line in block.splitlines():
        name, _, comment = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], name]
        found["".join(parents)] = comment.strip()
    return found


def anchors(text):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_front_page_is_short_and_begins_with_code():
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= MOST_LINES
    assert any(line.startswith("```bash") for line in lines[:FIRST_CODE_BEFORE_LINE])


@pytest.fixture
def robot_file(tmp_path, monkeypatch):
    """The robot file that the page of the programs shows, where commands look for it."""
    (text,) = blocks(PAGES["experiments/README.md"], "yaml")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "outputs/so101/robot.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_the_robot_file_of_the_page_is_one(robot_file):
    require_confirmed_limits(robot_file)
    assert read_robot_file(robot_file).limits.channels["gripper.pos"].kind == "gripper"


@pytest.mark.usefixtures("robot_file")
@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_composes(page, command):
    words = shlex.split(command)
    program = words[2].removeprefix("experiments.")
    overrides = [word for word in words[3:] if word != "--multirun"]
    if "--multirun" in words:  # a sweep: each value by itself
        overrides = [re.sub(r"=([^\[(,]+),.*", r"=\1", word) for word in overrides]
        overrides = [word for word in overrides if not re.search(r"sweeper|=tag\(|=interval\(", word)]
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        schema.typed(compose(program, overrides), schema.ROOTS.get(program))


def test_every_program_is_shown():
    shown = {shlex.split(command)[2].removeprefix("experiments.") for _, command in commands()}
    assert shown >= {*schema.ROOTS.names()}


def test_make_has_the_targets_that_are_named():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {
        line.split()[1]
        for text in PAGES.values()
        for line in typed_lines(text)
        if re.match(r"make [a-z-]", line)
    }
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    assert {"quickstart", "test", "format", "franka-setup", "franka-test"} <= targets


def test_the_recording_snippet_makes_a_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (snippet,) = [one for one in blocks(PAGES["vla/README.md"], "python") if "with DatasetWriter" in one]
    exec(compile(snippet, "README.md", "exec"), {"__name__": "readme"})
    dataset = Dataset(tmp_path / "outputs/datasets/my_arm")
    assert dataset.num_episodes == 3
    assert dataset.instructions == ["turn the joints"]


@pytest.mark.parametrize(("page", "snippet"), snippets())
def test_snippets_compile(page, snippet):
    compile(textwrap.dedent(snippet), page, "exec")


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folders_page_has_a_line_for_each_module_and_none_too_many(folder):
    named = tree(folder)
    for path in named:
        assert (ROOT / path).exists(), f"{folder}/README.md names {path}, which does not exist"
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py" and not path.name.startswith(".")
    }
    assert modules <= set(named), f"{folder}/README.md lacks {sorted(modules - set(named))}"
    without = [path for path, comment in named.items() if path.endswith(".py") and not comment]
    assert not without, f"no comment: {without}"


@pytest.mark.parametrize("name", NAMES)
def test_links_and_named_files_exist(name):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / name).parent / path if path else ROOT / name
        assert linked.exists(), f"{name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), f"{name}: no heading for {target}"
    for path in re.findall(
        r"(?<![\w./])(?:vla|envs|policies|experiments|conf|tests)/[\w/]+\.\w+\b", PAGES[name]
    ):
        assert (ROOT / path).exists(), f"{name} names {path}, which does not exist"


def test_the_index_of_results_has_one_line_for_each_file():
    files = {
        str(path.relative_to(RESULTS))
        for path in RESULTS.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    index = PAGES["experiments/results/README.md"]
    rows = re.findall(r"^\| (?:\[|`)([\w./]+\.\w+)[`\]]", index, flags=re.MULTILINE)
    assert sorted(rows) == sorted(files)


def test_no_result_names_a_path_of_one_machine():
    pages = [path for path in RESULTS.rglob("*") if path.suffix in (".md", ".json")]
    assert pages
    for path in pages:
        found = re.search(r"(?<![\w.])/(?:root|home|tmp|work|Users)/\S*", path.read_text(encoding="utf-8"))
        assert found is None, f"{path.name}: {found.group() if found else ''}"
