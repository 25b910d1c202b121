"""Pictures: contexts that come and go, sizes, quality, and what happens without OpenGL."""

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import gymnasium
import mujoco
import numpy as np
import pytest

from envs import opengl
from envs.base import CannotBeCopied
from envs.flat_observation import FlatObservation
from envs.opengl import NoOpenGL
from envs.registry import probe_env
from envs.rendering import GlContext, Renderer, apply_quality
from envs.tabletop.env import TabletopEnv
from envs.tabletop.scene import build_model


def first_frame(**arguments):
    env = TabletopEnv(task="reach", **arguments)
    frame = env.reset(seed=9)[0]["images"]["exterior"]
    env.close()
    return frame


def test_frame_survives_closing_and_remaking():
    frames = [first_frame() for _ in range(3)]
    assert frames[0].std() > 10
    for frame in frames[1:]:
        np.testing.assert_array_equal(frame, frames[0])


def test_two_environments_alive_at_once_draw_the_same():
    one, two = TabletopEnv(task="reach"), TabletopEnv(task="reach")
    frames = [env.reset(seed=9)[0]["images"]["exterior"] for env in (one, two)]
    again = one.render_camera("exterior")
    one.close()
    last = two.render_camera("exterior")
    two.close()
    for frame in (frames[1], again, last):
        np.testing.assert_array_equal(frame, frames[0])


def test_video_frame_between_camera_frames_changes_nothing():
    env = TabletopEnv(task="reach", video_height=120, video_width=160)
    before = env.reset(seed=9)[0]["images"]["exterior"]
    assert env.render_video_frame().shape == (120, 160, 3)
    np.testing.assert_array_equal(env.render_camera("exterior"), before)
    env.close()


def test_quality_changes_the_picture():
    assert (first_frame(render_quality="full") != first_frame(render_quality="fast")).mean() > 0.01


def test_image_size_is_what_was_asked():
    assert first_frame(image_size=224).shape == (224, 224, 3)


def test_closed_renderer_says_so():
    model = build_model()
    apply_quality(model, "fast")
    renderer = Renderer(model=model, max_height=32, max_width=32)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with pytest.raises(ValueError, match="64x64"):
        renderer.render(data, camera_id=0, height=64, width=64)
    renderer.close()
    renderer.close()
    with pytest.raises(RuntimeError, match="closed"):
        renderer.render(data, camera_id=0, height=32, width=32)


@pytest.fixture
def no_variables(monkeypatch):
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_variables")
def test_missing_opengl_names_the_line_to_run(monkeypatch):
    monkeypatch.setattr(opengl, "is_installed", lambda backend: False)
    with pytest.raises(NoOpenGL, match=r"apt-get install .*libegl1"):
        GlContext(8, 8)


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MUJOCO_GL", "gpu", "MUJOCO_GL=gpu names no OpenGL"),
        ("MUJOCO_GL", "osmesa", "MUJOCO_GL=osmesa, but OSMesa is not installed"),
        ("PYOPENGL_PLATFORM", "x11", "PYOPENGL_PLATFORM=x11, but frames are drawn with egl"),
        ("MUJOCO_EGL_DEVICE_ID", "", "MUJOCO_EGL_DEVICE_ID='' is no number"),
        ("MUJOCO_EGL_DEVICE_ID", "-1", "MUJOCO_EGL_DEVICE_ID='-1' is no number"),
    ],
)
def test_a_variable_that_is_wrong_is_named_before_opengl_starts(monkeypatch, name, value, words):
    monkeypatch.setattr(opengl, "is_installed", lambda backend: backend == "egl")
    monkeypatch.setenv(name, value)
    with pytest.raises(NoOpenGL, match=words):
        opengl.require_drawable()


@pytest.mark.parametrize(
    "variable",
    [
        "MUJOCO_GL=gpu",  # MuJoCo itself fails on it as soon as it is imported
        "MUJOCO_EGL_DEVICE_ID=999",
        "MESA_GL_VERSION_OVERRIDE=1.4",
    ],
)
def test_a_variable_that_is_wrong_is_named_once_and_nothing_else_is_said(variable):
    code = (
        "from envs.registry import make_env\n"
        "from envs.opengl import NoOpenGL\n"
        "try:\n"
        "    make_env({'family': 'tabletop', 'task': 'reach'}).reset(seed=0)\n"
        "except NoOpenGL as error:\n"
        "    print(error)\n"
    )
    name, _, value = variable.partition("=")
    environment = os.environ | {name: value}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert variable in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_wrong_task_is_found_before_any_work():
    right = {"family": "tabletop", "level": "none"}
    assert probe_env({"reach": {**right, "task": "reach"}}).name == "fr3_tabletop"
    with pytest.raises(ValueError, match="'raech' is unknown; did you mean 'reach'"):
        probe_env({task: {**right, "task": task} for task in ("reach", "raech")})


def test_environments_are_made_used_and_closed_in_several_threads():
    expected = first_frame()
    lent = TabletopEnv(task="reach")  # made and drawn with here, then used by the others, then here again
    lent.reset(seed=9)
    frames = []

    def work():
        frames.append(lent.render_camera("exterior"))
        frames.extend(first_frame() for _ in range(2))

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work) for _ in range(3)]:
            done.result()
    frames.append(lent.render_camera("exterior"))
    lent.close()
    assert len(frames) == 10
    for frame in frames:
        np.testing.assert_array_equal(frame, expected)


def test_a_shared_context_draws_in_the_thread_that_asks():
    model = build_model()
    apply_quality(model, "fast")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)

    def draw():
        renderer = Renderer(model=model, max_height=32, max_width=32, share_context=True)
        frame = renderer.render(data, camera_id=0, height=32, width=32)
        renderer.close()
        return frame

    here = draw()
    with ThreadPoolExecutor(2) as pool:
        for there in [pool.submit(draw) for _ in range(4)]:
            np.testing.assert_array_equal(there.result(), here)
    np.testing.assert_array_equal(draw(), here)


def test_nothing_is_drawn_before_the_first_reset():
    env = TabletopEnv(task="reach", render_mode="rgb_array")
    for draw in (env.render, env.observe, lambda: env.render_camera("wrist"), env.render_video_frame):
        with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
            draw()
    env.close()


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_environment_that_cannot_be_copied_says_so(how):
    env = TabletopEnv(task="reach")
    wrapped = [] if how is copy.copy else [FlatObservation(env)]  # whose copy shares the environment
    for one in (env, *wrapped):
        with pytest.raises(CannotBeCopied, match="make another one"):
            how(one)
    env.close()


def test_forgotten_close_is_silent_at_exit():
    code = (
        "from envs.tabletop.env import TabletopEnv\n"
        "env = TabletopEnv(task='reach')\n"
        "other = TabletopEnv(task='reach')\n"
        "env.reset(seed=0); other.reset(seed=0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_settings_and_results_need_no_simulator():
    code = (
        "import sys, envs.registry, envs.evaluation.results\n"
        "found = {'mujoco', 'gymnasium', 'torch'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
