"""`experiments.check` from end to end: what it prints and writes, its exit code, the mended copy."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests/data"), str(ROOT / "tests/data/quality")]
import quality_fixtures as plant  # noqa: E402


def check(*arguments):
    command = [sys.executable, "-m", "experiments.check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)


def test_a_spoiled_recording_fails_and_its_mended_copy_passes(tmp_path):
    drafts = plant.clean_episodes()
    plant.bgr(drafts)
    plant.outlier(drafts)
    source = plant.record(tmp_path / "source", drafts)
    result = check(f"dataset={source}", f"out_dir={tmp_path}/first", f"mend={tmp_path}/copy")
    assert result.returncode == 1, result.stderr
    for expected in (
        "660 (0.6 minutes at 20 Hz)",
        "32 x 48",
        "lift the red cube",
        "state/elbow",
        "2 errors:",
        "color_order  [front]",
        "episodes 4, 11",
        "-> exchange red and blue",
        "dropped 1 episodes (outlier): 3",
        "exchanged red and blue of front",
    ):
        assert expected in result.stdout
    stored = json.loads((tmp_path / "first/findings.json").read_text())
    assert stored["errors"] == 2
    assert [(one["check"], one["episodes"]) for one in stored["findings"]] == [
        ("outlier", [3]),
        ("color_order", [4, 11]),
    ]
    page = (tmp_path / "first/report.html").read_text()
    for expected in (
        "color_order",
        "Camera front",
        "data:image/jpeg;base64,",
        "<polyline",
        "episode 11, 44 frames",
    ):
        assert expected in page
    result = check(f"dataset={tmp_path}/copy", f"out_dir={tmp_path}/second")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Nothing was found." in result.stdout


def test_a_dataset_that_does_not_open_is_a_finding(tmp_path):
    source = plant.record(tmp_path / "source", plant.clean_episodes()[:3])
    plant.nan(source)
    result = check(f"dataset={source}", f"out_dir={tmp_path}/out", f"mend={tmp_path}/copy")
    assert result.returncode == 1
    assert "not_finite" in result.stdout
    assert "cannot be opened, so no copy can be mended" in result.stderr
    assert (tmp_path / "out/report.html").exists()
