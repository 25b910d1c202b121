"""The page on plug-ins, carried out verbatim in an empty folder: its files, then its commands."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "experiments" / "plugins" / "README.md").read_text(encoding="utf-8")
SMALL = {  # what makes it quick, and changes nothing of the plug-in
    "collect": ["collect.num_workers=1"],
    "train": [
        *(
            "trainer.compile=off",
            "trainer.num_threads=1",
            "model.backbone.width=32",
            "model.backbone.depth=1",
        ),
        *("model.backbone.num_heads=2", "model.backbone.stem_channels=[8,8]", "model.backbone.patch_size=16"),
    ],
    "evaluate": ["evaluation.num_workers=1"],
}
MOST_LINES = 120  # of the environment

pytestmark = pytest.mark.slow  # each collects, trains, exports and evaluates: a minute and more


def section(heading):
    """Return the Python file and the commands of a section of the page."""
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (part,) = [one for one in text if one.startswith(f"{heading}\n")]
    (code,) = re.findall(r"^```python\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL)
    (shell,) = re.findall(r"^```bash\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL)
    return code, shell.splitlines()


def program(folder, words):
    """Run a program as typed in a folder."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def carry_out(folder, heading):
    """Write the file of a section and run its commands."""
    code, commands = section(heading)
    name = re.match(r"# (\w+\.py)\n", code)
    assert name
    (folder / name[1]).write_text(code)
    for command in commands:
        words = shlex.split(command)[2:]
        done = program(folder, [*words, *SMALL.get(words[0].removeprefix("experiments."), [])])
        assert done.returncode == 0, f"{command}\n{done.stdout[-500:]}{done.stderr[-3000:]}"


@pytest.mark.timeout(900)
def test_the_codec(tmp_path):
    carry_out(tmp_path, "An action codec")
    common = ["out_dir=other", "tasks=[reach]", "env.level=none", "env.image_size=32"]
    for kind, path in (("checkpoint", "run"), ("bundle", "bundle")):
        missing = program(tmp_path, ["experiments.evaluate", f"policy={kind}", f"path={path}", *common])
        assert missing.returncode == 1
        assert "was trained with the plug-ins mulaw 1.0. Pass plugins=[mulaw]" in missing.stderr
        assert "export it again" not in missing.stderr
    typo = program(
        tmp_path, ["experiments.train", "plugins=[mulaw]", "codec=mulaw", "codec.num_bin=100", "dataset=data"]
    )
    assert typo.returncode == 2
    assert "unknown key 'codec.num_bin'; did you mean 'num_bins'?" in typo.stderr


@pytest.mark.timeout(900)
def test_the_environment(tmp_path):
    code, _ = section("An environment")
    assert len(code.splitlines()) <= MOST_LINES
    carry_out(tmp_path, "An environment")
