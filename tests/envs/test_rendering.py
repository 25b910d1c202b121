"""Pictures: contexts that come and go, sizes, quality, and what happens without OpenGL."""

import subprocess
import sys

import mujoco
import numpy as np
import pytest

from envs import rendering
from envs.rendering import NoOpenGL, Renderer, apply_quality
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


def test_missing_opengl_names_the_line_to_run(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_loads", lambda library: False)
    monkeypatch.setattr(rendering.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(NoOpenGL, match=r"apt-get install .*libegl1"):
        rendering.make_gl_context(8, 8)


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
