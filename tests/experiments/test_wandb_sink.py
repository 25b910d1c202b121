"""Training never waits for wandb and never dies of it."""

import threading
import time

import pytest
import wandb
from program_fixtures import composed

from experiments import wandb_sink
from experiments.train import make_sinks
from experiments.wandb_sink import WandbSink, is_logged_in


def make_sink(tmp_path):
    return WandbSink(run_dir=tmp_path, project="test", config={"a": 1}, run_id="run")


class FakeRun:
    def __init__(self):
        self.rows = []

    def log(self, values, step):
        self.rows.append((step, values))

    def finish(self):
        pass


def test_values_arrive_in_order(tmp_path, monkeypatch):
    run = FakeRun()
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    sink = make_sink(tmp_path)
    for step in range(5):
        sink.log(step, {"loss": float(step)})
    sink.close()
    assert run.rows == [(step, {"loss": float(step)}) for step in range(5)]


@pytest.mark.parametrize("error", [wandb.Error("no"), OSError("disk full"), RuntimeError("service died")])
def test_an_error_costs_one_warning(tmp_path, monkeypatch, capsys, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(wandb, "init", fail)
    sink = make_sink(tmp_path)
    for step in range(100):
        sink.log(step, {"loss": 1.0})
        time.sleep(0.001)
    sink.close()
    message = capsys.readouterr().err
    assert message.count("[wandb]") == 1
    assert str(error) in message


def test_a_hanging_wandb_blocks_nobody(tmp_path, monkeypatch, capsys):
    released = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **_: released.wait(30) and FakeRun())
    monkeypatch.setattr(wandb_sink, "_CLOSE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(wandb_sink, "_QUEUE_SIZE", 10)
    sink = make_sink(tmp_path)
    started = time.monotonic()
    for step in range(1000):
        sink.log(step, {"loss": 1.0})
    sink.close()
    assert time.monotonic() - started < 20.0  # it hangs for 30
    released.set()
    assert capsys.readouterr().err.count("[wandb]") == 1


def test_offline_unless_logged_in(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(wandb, "init", lambda **arguments: asked.append(arguments["mode"]) or FakeRun())
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    make_sink(tmp_path).close()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    make_sink(tmp_path).close()
    assert asked == ["offline", "online"]


def test_a_broken_netrc_is_no_login(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / ".netrc").write_text("machine")
    assert not is_logged_in()


def test_the_real_wandb_writes_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_sink, "_INIT_TIMEOUT_S", 100.0)  # a busy machine
    monkeypatch.setattr(wandb_sink, "_CLOSE_TIMEOUT_S", 150.0)
    sink = make_sink(tmp_path)
    sink.log(1, {"loss": 0.5})
    sink.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("key", "variable", "project"),
    [(None, None, "vla-stack"), (None, "theirs", "theirs"), ("mine", "theirs", "mine")],
)
def test_the_project_is_that_of_the_key_or_of_the_environment(tmp_path, monkeypatch, key, variable, project):
    given = []
    monkeypatch.setattr(wandb_sink, "WandbSink", lambda **arguments: given.append(arguments))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    if variable is not None:
        monkeypatch.setenv("WANDB_PROJECT", variable)
    overrides = [] if key is None else [f"wandb_project={key}"]
    make_sinks(composed("train", "logger=wandb", *overrides), tmp_path)
    assert [arguments["project"] for arguments in given] == [project]
