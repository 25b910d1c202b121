"""Training never waits for wandb and never dies of it."""

import threading
import time

import pytest
import wandb
from program_fixtures import composed

from envs.evaluation.episodes import EpisodeRow
from envs.evaluation.results import Evaluation, EvaluationPlan, VideoRecord
from experiments import wandb_sink
from experiments.config.schema import WandbSettings
from experiments.train import make_sink
from experiments.wandb_sink import WandbSink, evaluation_values, is_logged_in, names_of_run


def make_sink_of(tmp_path):
    return WandbSink(run_dir=tmp_path, settings=WandbSettings(project="test"), config={"a": 1}, run_id="run")


def evaluation(folder):
    """One of two episodes succeeded, and was filmed."""
    rows = tuple(
        EpisodeRow(
            task="reach",
            seed=10 + k,
            instruction_mode="original",
            instruction="go",
            given_instruction="go",
            level="none",
            steps=5,
            success=k == 0,
            num_clipped=0,
            wall_s=0.1,
            policy_id="p",
            versions={},
        )
        for k in range(2)
    )
    (folder / "film.mp4").write_bytes(b"film")
    film = VideoRecord(
        task="reach",
        seed=10,
        success=True,
        steps=5,
        instruction="go",
        given_instruction="go",
        video="film.mp4",
        filmstrip="film.jpg",
        replay_agrees=True,
    )
    plan = EvaluationPlan(env_configs={"reach": {"task": "reach"}}, episodes_per_task=2, first_seed=10)
    return Evaluation(run_dir=folder, plan=plan, policy_id="p", rows=rows, videos=(film,))


class FakeRun:
    dir, url = "somewhere/offline-run-1/files", None

    def __init__(self):
        self.rows = []

    def log(self, values, step):
        self.rows.append((step, values))

    def finish(self):
        pass


def test_values_arrive_in_order(tmp_path, monkeypatch):
    run = FakeRun()
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    sink = make_sink_of(tmp_path)
    for step in range(5):
        sink.log(step, {"loss": float(step)})
    sink.close()
    assert run.rows == [(step, {"loss": float(step)}) for step in range(5)]


@pytest.mark.parametrize("error", [wandb.Error("no"), OSError("disk full"), RuntimeError("service died")])
def test_an_error_costs_one_warning(tmp_path, monkeypatch, capsys, error):
    def fail(**_):
        raise error

    monkeypatch.setattr(wandb, "init", fail)
    sink = make_sink_of(tmp_path)
    for step in range(100):
        sink.log(step, {"loss": 1.0})
        time.sleep(0.001)
    sink.close()
    message = capsys.readouterr().err
    assert message.count("[wandb]") == 1
    assert str(error) in message


def test_a_hanging_wandb_blocks_nobody(tmp_path, monkeypatch, capsys):
    begun, released = threading.Event(), threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **_: begun.set() or (released.wait(30) and FakeRun()))
    monkeypatch.setattr(wandb_sink, "_CLOSE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(wandb_sink, "_QUEUE_SIZE", 10)
    sink = make_sink_of(tmp_path)
    started = time.monotonic()
    for step in range(1000):
        sink.log(step, {"loss": 1.0})
    assert begun.wait(60), "or it would begin in a test after this one"
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
    sink = make_sink_of(tmp_path)
    sink.log(1, {})
    sink.close()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    sink = make_sink_of(tmp_path)
    sink.log(1, {})
    sink.close()
    assert asked == ["offline", "online"]


def test_a_broken_netrc_is_no_login(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / ".netrc").write_text("machine")
    assert not is_logged_in()


def test_the_real_wandb_writes_offline_and_says_how_to_send_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(wandb_sink, "_INIT_TIMEOUT_S", 100.0)  # a busy machine
    monkeypatch.setattr(wandb_sink, "_CLOSE_TIMEOUT_S", 150.0)
    monkeypatch.setenv("WANDB_MODE", "offline")
    sink = make_sink_of(tmp_path)
    sink.log(1, {"loss": 0.5})
    sink.log_evaluation(1, {"original": evaluation(tmp_path)})
    sink.close()
    printed = capsys.readouterr()
    assert not printed.err
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert f"wandb sync {written.parent}" in printed.out
    assert list(written.parent.glob("files/media/videos/film/original/*/*.mp4"))
    assert list(written.parent.glob("files/media/table/*.table.json"))


def test_a_run_that_logs_nothing_begins_none(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("begun"))
    make_sink_of(tmp_path).close()


def test_success_rates_and_a_table_of_tasks_are_logged(tmp_path):
    values = evaluation_values({"original": evaluation(tmp_path)})
    assert values["success/original"] == 0.5
    assert values["success by task"].data[0][:5] == ["original", "reach", 1, 2, 0.5]
    assert list(values)[2:] == ["film/original/reach/10"]


VARIABLES = ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_ENTITY", "WANDB_TAGS")


def test_what_no_key_names_is_left_to_the_variables_of_wandb(tmp_path, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    bare = {"project": "vla-stack", "entity": None, "name": "run", "group": None, "tags": None}
    assert names_of_run(WandbSettings(), tmp_path / "run") == bare
    in_a_sweep = names_of_run(WandbSettings(), tmp_path / "rates" / "3")
    assert (in_a_sweep["name"], in_a_sweep["group"]) == ("rates/3", "rates")
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "theirs")
    theirs = names_of_run(WandbSettings(), tmp_path / "run")
    assert [theirs[key] for key in ("project", "name", "group")] == ["theirs"] * 3
    assert [theirs[key] for key in ("entity", "tags")] == [None, None]  # wandb reads its variables itself
    keys = ("project", "entity", "name", "group")
    overrides = [*(f"wandb.{key}=mine" for key in keys), "wandb.tags=[a,b]"]
    mine = names_of_run(composed("train", "logger=wandb", *overrides).wandb, tmp_path / "run")
    assert mine == {**dict.fromkeys(keys, "mine"), "tags": ["a", "b"]}


def test_train_logs_to_wandb_only_if_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_sink, "WandbSink", lambda **arguments: arguments)
    assert make_sink(composed("train"), tmp_path) is None
    assert make_sink(composed("train", "logger=wandb"), tmp_path)["settings"] == WandbSettings()
