"""The completion of the command `vla` in zsh; that in bash is tried with the wheel, in test_wheel.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
vla() { "$PYTHON" -c 'from experiments.console import main; main()' "$@" }
compdef() { print -r -- "compdef $*" }
compadd() { print -r -- "add $*" }
compset() { }
_files() { print -r -- files }
eval "$(vla --completion zsh)"
complete_last() { CURRENT=$#words; PREFIX=$words[-1]; _vla }
words=(vla swee); complete_last
words=(vla train experiment=tab); complete_last
words=(vla train 'plugins=[toy_env]' env=to); complete_last
words=(vla train dataset=out); complete_last
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes_programs_keys_options_and_files():
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    done = subprocess.run(
        ["zsh", "-f", "-c", SCRIPT],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.stdout.splitlines() == [
        "compdef _vla vla",
        "add -Q -- sweep_table",
        "add -Q -S  --",
        "add -Q --",
        "add -Q -S  -- experiment=tabletop",
        "add -Q --",
        "add -Q -S  -- env=toy",
        "files",
    ], done.stderr
