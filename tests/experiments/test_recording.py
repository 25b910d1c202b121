"""What a recording is made of, and what it is for: the environment of the run, one set of cameras."""

import contextlib
import dataclasses

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from envs.collection import DemonstrationEpisode
from envs.disturbance import Disturbance
from envs.opengl import NoOpenGL
from experiments.benchmark import record_what_is_read
from experiments.collect import Collection
from experiments.config import schema
from experiments.config.schema import CollectSettings
from experiments.train import record_if_asked
from experiments.training_parts import is_simulated
from vla.data.layout import DatasetError
from vla.data.reader import Dataset
from vla.spec import CameraSpec, Channel, RobotSpec, SpecMismatch


@pytest.mark.parametrize(("asked", "wanted"), [(None, 0.2), (0.5, 0.5)])
def test_recordings_may_have_another_share_of_equal_colors_than_the_run(tmp_path, asked, wanted):
    env = {
        "family": "tabletop",
        "image_size": 16,
        "cameras": ["exterior"],
        "render_quality": "fast",
        "wording": "train",
        "level": "none",
        "same_color_share": 0.2,
    }
    settings = CollectSettings(
        episodes_per_task=1,
        disturbance=Disturbance(),
        recording_same_color_share=asked,
        storage="image",
    )
    collection = Collection(root=tmp_path / "dataset", env=env, tasks=["reach", "lift"], collect=settings)
    collection.writer.close()
    assert {config["same_color_share"] for config in collection.configs.values()} == {wanted}
    assert env["same_color_share"] == 0.2


def test_a_recording_under_a_former_name_of_a_setting_continues(tmp_path):
    record_if_asked(tiny_run(tmp_path))
    path = tmp_path / "meta" / "info.json"
    path.write_text(path.read_text().replace("same_color_share", "twin_share"))
    record_if_asked(tiny_run(tmp_path, "collect.episodes_per_task=2"))
    assert Dataset(tmp_path).num_episodes == 2
    assert "twin_share" in path.read_text()


def tiny_run(dataset, *overrides):
    given = [f"dataset={dataset}", "record=true", "tasks=[reach]", "collect.episodes_per_task=1"]
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", [*given, "env.image_size=16", "collect.storage=image", *overrides])
    return schema.typed(config, schema.TrainRun)


def test_a_recording_with_other_cameras_is_used_only_if_asked(tmp_path):
    record_if_asked(tiny_run(tmp_path, "env.cameras=[exterior,wrist]"))
    with pytest.raises(SpecMismatch, match=r"cameras:(.|\n)*record=false .*another dataset"):
        record_if_asked(tiny_run(tmp_path, "env.cameras=[wrist]"))
    record_if_asked(tiny_run(tmp_path, "env.cameras=[wrist]", "record=false"))


def test_a_run_is_rolled_out_where_its_robot_is_and_pictures_are_the_same(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, "env.render_quality=full", "env.cameras=[wrist]")
    record_if_asked(run)
    spec = Dataset(tmp_path).robot_spec
    assert is_simulated(run, spec)
    with monkeypatch.context() as broken:  # found before training, which takes hours
        broken.setenv("PYOPENGL_PLATFORM", "x11")
        with pytest.raises(NoOpenGL, match="PYOPENGL_PLATFORM=x11"):
            is_simulated(run, spec)
    assert not is_simulated(run, dataclasses.replace(spec, name="somebody's arm"))
    for override, told in (
        ("env.render_quality=fast", r"render_quality=full.*Give env\.render_quality=full"),
        ("env.cameras=[exterior,wrist]", r"cameras \['wrist'\].*Choose with data\.cameras"),
    ):
        quality = [] if "quality" in override else ["env.render_quality=full"]
        other = tiny_run(tmp_path, "env.cameras=[wrist]", *quality, override)
        with pytest.raises(ValueError, match=told):
            is_simulated(other, spec)
        other.evaluation = dataclasses.replace(other.evaluation, instruction_modes=[])
        assert not is_simulated(other, spec)


def test_a_recording_may_go_on_after_success(tmp_path):
    for name, extra in (("short", 0), ("long", 3)):
        record_if_asked(tiny_run(tmp_path / name, f"collect.extra_steps={extra}"))
    assert Dataset(tmp_path / "long").num_frames == Dataset(tmp_path / "short").num_frames + 3
    with pytest.raises(DatasetError, match="extra_steps"):
        record_if_asked(tiny_run(tmp_path / "short", "collect.extra_steps=3", "collect.episodes_per_task=2"))


def test_a_wrong_task_leaves_no_dataset_behind(tmp_path):
    with pytest.raises(ValueError, match="lfit"):
        record_if_asked(tiny_run(tmp_path / "dataset", "tasks=[reach,lfit]"))
    assert not (tmp_path / "dataset").exists()


def test_a_benchmark_adds_nothing_to_a_dataset_that_is_there(tmp_path):
    record_if_asked(tiny_run(tmp_path))
    schema.register()
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("benchmark", ["part=data", f"dataset={tmp_path}", "env=metaworld", "tasks=[reach]"])
    record_what_is_read(schema.typed(config, schema.BenchmarkRun))
    assert Dataset(tmp_path).num_episodes == 1


class Killed(BaseException):
    """Stands for a killed process: nothing behind it runs but the writer's lock."""


FAILING = {("reach", 1), ("reach", 4), ("lift", 2)}
SPEC = RobotSpec(
    name="toy",
    cameras=(CameraSpec(name="top", height=8, width=8),),
    state=(Channel(name="x", unit="m", low=-1.0, high=1.0),),
    action=(Channel(name="x", unit="m", low=-1.0, high=1.0),),
    control_hz=10.0,
    action_convention="joint_delta",
    gripper_sign="none",
)


def record_order(root, monkeypatch, *, most):
    """Record in turns, up to `most` episodes, what an expert demonstrates that fails at times."""
    done = []

    def expert(configs, seeds, *, on_failure, **_options):
        for turn in range(max(map(len, seeds.values()))):
            for task in [task for task in seeds if turn < len(seeds[task])]:
                seed = seeds[task][turn]
                if (task, seed) in FAILING:
                    on_failure(task, seed)
                    continue
                if len(done) == most:
                    raise Killed
                done.append((task, seed))
                numbers = np.full((2, 1), seed / 10, np.float32)
                images = {"top": np.zeros((2, 8, 8, 3), np.uint8)}
                yield DemonstrationEpisode(
                    task=task,
                    seed=seed,
                    instruction=task,
                    images=images,
                    states=numbers,
                    actions=numbers,
                    robot_spec=SPEC,
                    success=True,
                    noisy=False,
                )

    monkeypatch.setattr("experiments.collect.collect_episodes", expert)
    monkeypatch.setattr("experiments.collect.probe_env", lambda configs: SPEC)
    settings = CollectSettings(episodes_per_task=4, disturbance=Disturbance(), storage="image")
    collection = Collection(
        root=root, env={"family": "tabletop"}, tasks=["reach", "lift", "push"], collect=settings
    )
    with contextlib.suppress(Killed), collection.writer:
        collection.record()


def test_an_interrupted_recording_has_the_same_episodes_in_the_same_order(tmp_path, monkeypatch):
    record_order(tmp_path / "whole", monkeypatch, most=99)
    whole = Dataset(tmp_path / "whole").episode_extra
    assert len(whole["seed"]) == 12
    for most in range(12):
        record_order(tmp_path / str(most), monkeypatch, most=most)
        record_order(tmp_path / str(most), monkeypatch, most=99)
        assert Dataset(tmp_path / str(most)).episode_extra == whole, f"killed after {most}"
