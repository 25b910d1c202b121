"""The page on plug-ins, carried out verbatim in empty folders: the files of a section, then its commands."""

import json
import os
import subprocess
import sys

import pytest
from plugin_pages import ROOT, section

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


def program(folder, words, *, is_module=True):
    """Run a program as typed in a folder."""
    return subprocess.run(
        [sys.executable, *(["-m"] if is_module else []), *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def carry_out(folder, heading):
    """Write the files of a section and run its commands."""
    part = section(heading)
    for name, text in part.files.items():
        (folder / name).write_text(text)
    for words in part.commands:
        assert words[0] == "python"
        rest = words[2:] if words[1] == "-m" else words[1:]
        verb = rest[0].removeprefix("experiments.")
        done = program(folder, rest + SMALL.get(verb, []), is_module=words[1] == "-m")
        assert done.returncode == 0, f"{words}\n{done.stdout[-1500:]}{done.stderr[-3000:]}"


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
    (code,) = section("An environment").files.values()
    assert len(code.splitlines()) <= MOST_LINES
    carry_out(tmp_path, "An environment")


@pytest.mark.timeout(900)
def test_the_head(tmp_path):
    carry_out(tmp_path, "A head")
    loops = (
        section("A head")
        .files["regression.py"]
        .replace(
            'return {"actions": self.actions(backbone, prefix)}',
            "made = self.actions(backbone, prefix)\n"
            "        while made.abs().max() > 1:\n            made = made / 2\n"
            '        return {"actions": made}',
        )
    )
    (tmp_path / "regression.py").write_text(loops)
    refused = program(
        tmp_path, ["experiments.export", "plugins=[regression.py]", "checkpoint=run", "bundle=other"]
    )
    assert refused.returncode == 1
    assert "head 'regression' cannot become a graph" in refused.stderr
    assert f"(`while made.abs().max() > 1:` at {tmp_path / 'regression.py'}:" in refused.stderr
    assert "def forward" not in refused.stderr
    assert not (tmp_path / "other").exists()
    with_torch = ["experiments.evaluate", "plugins=[regression.py]", "policy=bundle", "path=bundle"]
    scene = ["tasks=[reach]", "env.level=none", "env.image_size=32", "evaluation.episodes_per_task=1"]
    modes = ["evaluation.instruction_modes=[original]", "out_dir=again", *SMALL["evaluate"]]
    said = program(tmp_path, [*with_torch, *scene, *modes]).stderr
    assert "Leave out plug-ins that import torch" in said


@pytest.mark.timeout(900)
def test_the_robot(tmp_path):
    carry_out(tmp_path, "A robot")
    checks = json.loads((tmp_path / "slider_moved" / "findings.json").read_text())["checks"]
    assert ["commands arrive", "rail", "passed"] in [row[:3] for row in checks]
    summary = json.loads((tmp_path / "slider_control" / "summary.json").read_text())
    assert summary["state"] == "IDLE"
    unconfirmed = (tmp_path / "slider.yaml").read_text().replace("confirmed: true", "confirmed: false")
    (tmp_path / "slider.yaml").write_text(unconfirmed)
    refused = program(
        tmp_path,
        [
            *("experiments.control", "plugins=[slider.py]", "robot=slider", "robot.robot_file=slider.yaml"),
            *("bundle=slider_bundle", "out_dir=refused"),
        ],
    )
    assert refused.returncode == 1
    assert "nobody has confirmed them" in refused.stderr
