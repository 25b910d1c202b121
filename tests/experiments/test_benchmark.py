"""Benchmarks: what a row says, what is written, and each part run at toy size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.benchmark import PARTS
from experiments.benchmarks.lerobot_peer import Work
from experiments.benchmarks.limits import gemm_flops, memory_bandwidth
from experiments.benchmarks.measure import Row, best_cpu_s, save, terminal_table
from experiments.benchmarks.peers import ask

ROOT = Path(__file__).parents[2]
TOY = [
    "repeats=2",
    "env=metaworld",
    "tasks=[handle-press]",
    "env.image_size=32",
    "collect.episodes_per_task=3",
    "collect.num_workers=1",
    "processor.inputs.state.constant_dims=[gripper_opening]",
    "model.backbone.width=32",
    "model.backbone.depth=1",
    "model.backbone.num_heads=2",
    "model.backbone.stem_channels=[8,8]",
    "model.backbone.patch_size=16",
    "trainer.num_samples=32",
    "trainer.max_minutes=0.02",
    "trainer.batch_size=8",
    "trainer.log_every_steps=2",
]

WORK = Work(
    image_size=32,
    num_cameras=1,
    state_dim=4,
    action_dim=4,
    action_horizon=8,
    batch_size=2,
    num_threads=1,
    repeats=1,
)


def test_a_share_is_of_the_limit_whichever_way_is_better():
    rate = Row(name="training", value=250.0, unit="samples/s", limit=1000.0)
    duration = Row(name="frame", value=4.0, unit="ms", limit=1.0)
    assert rate.share == duration.share == 0.25
    assert Row(name="load", value=1.0, unit="ms").share is None


def test_the_table_numbers_each_note_once():
    rows = [Row(name=name, value=1234.5, unit="us", limit=617.25, limit_name="memory") for name in "ab"]
    table = terminal_table([*rows, Row(name="c", value=0.01234, unit="ms")])
    assert table.count("(1)") == 3
    assert "(2)" not in table
    assert "50 %" in table
    assert "0.0123 ms" in table


def test_what_is_saved_can_be_read_and_names_its_origin(tmp_path):
    path = save([Row(name="a", value=2.0, unit="ms", limit=1.0)], part="data", command="c", out_dir=tmp_path)
    assert "| a | 2 ms | 1 ms | 50 % |" in path.read_text()
    found = json.loads((tmp_path / "data.json").read_text())
    assert found["rows"][0]["share"] == 0.5
    assert found["command"] == "c"
    assert found["versions"]["python"]


def test_the_smallest_time_counts():
    work = iter([200_000, 100, 100_000])
    assert best_cpu_s(lambda: sum(range(next(work))), repeats=3) < 1e-3


def test_limits_are_those_of_a_computer():
    assert 1e8 < gemm_flops(torch.float32, repeats=1) < 1e15
    assert 1e7 < memory_bandwidth(repeats=1) < 1e13


def test_an_unknown_part_names_those_that_exist(tmp_path):
    result = program("trainign", out_dir=tmp_path)
    assert result.returncode == 2
    for part in PARTS:
        assert part in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs_at_toy_size(part, tmp_path):
    pytest.importorskip("metaworld", reason="Meta-World is not installed: pip install -e '.[metaworld]'")
    result = program(part, *TOY, out_dir=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / f"{part}.json").read_text())["rows"]
    assert all(row["value"] > 0 for row in rows)
    assert any(row["limit"] for row in rows)


def program(part, *overrides, out_dir):
    command = [
        sys.executable,
        "-m",
        "experiments.benchmark",
        f"part={part}",
        f"out_dir={out_dir}",
        *overrides,
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=500)


def test_a_peers_interpreter_that_is_not_there_is_named():
    with pytest.raises(RuntimeError, match="no/such/python"):
        ask(Path("no/such/python"), WORK)


def test_what_a_peers_interpreter_lacks_is_told(tmp_path):
    bare = tmp_path / "python"  # without site-packages, whatever this environment holds
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(RuntimeError, match="No module named"):
        ask(bare, WORK)
