"""Training that is told to end, and configuration that names code."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from vla.model.checkpoint import list_checkpoints

ROOT = Path(__file__).parents[2]


def test_a_file_with_the_name_of_a_setting_that_runs_code_is_a_misspelt_key(tmp_path: Path) -> None:
    """`_target_: os.system` in a command or in a file of settings is nothing but an unknown key."""
    marker = tmp_path / "ran"
    (tmp_path / "run.yaml").write_text(
        f"defaults: [train, _self_]\n_target_: os.system\ncommand: touch {marker}\n", encoding="utf-8"
    )
    for arguments in (
        ["+model._target_=os.system", f"+model.command='touch {marker}'"],
        ["--config-dir", str(tmp_path), "--config-name", "run"],
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "experiments.train", f"dataset={tmp_path}", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 2, ended.stderr
        assert "_target_" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert not marker.exists()


def test_a_training_that_is_told_to_end_saves_and_is_gone_in_ten_seconds(tmp_path: Path) -> None:
    """SIGTERM, in the middle of steps, with the exit code that the program documents."""
    script = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(ROOT / "tests" / "training")!r})
        from pathlib import Path
        from training_fixtures import train_for
        from experiments.config import cli

        def main():
            result = train_for(Path({str(tmp_path / "run")!r}), Path({str(tmp_path)!r}), steps=100000,
                               log_every_steps=1)
            if result.end == "interrupted":
                raise cli.Terminated

        cli.run(main)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 150
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(timeout=120) == 143
    cpu_s = time.monotonic() - began
    assert cpu_s < 10.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), "on a machine that is busy"
    assert len(list_checkpoints(tmp_path / "run")) == 1
