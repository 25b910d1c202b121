"""How fast Meta-World is here, next to bare physics, a bare picture, and the package as it comes.

All times are CPU time of one process. The same seed and the same scripted expert run in our environment and
in the package's own, which draws as gymnasium does by default.
"""

import time
import warnings
from dataclasses import dataclass

import mujoco
import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from envs.metaworld.env import MetaWorldEnv, make_simulation
from envs.rendering import Renderer, apply_quality
from experiments.benchmarks.measure import Row, best_cpu_s

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_EMPTY = "<mujoco><worldbody><geom type='plane' size='1 1 1'/><camera pos='0 0 2'/></worldbody></mujoco>"
_DEFAULT_FRAMES = 5  # repeats of a frame that takes a tenth of a second
_EPISODES = 3  # of each kind; the fastest counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """What an episode cost."""

    steps: int
    frames: int
    cpu_s: float
    success: bool


def measure(
    *, task: str, image_size: int, camera: str, execute_horizon: int, seed: int, repeats: int
) -> list[Row]:
    """Return the table of one task.

    Args:
        task: of Meta-World.
        image_size: height and width of the frames [pixels].
        camera: which one is drawn.
        execute_horizon: control periods from one frame that a policy sees to the next.
        seed: of the episode.
        repeats: of every short measurement; the smallest counts.
    """
    bare_frame_s = _bare_frame_s(image_size, repeats=repeats)  # first: it chooses the OpenGL for both
    as_it_comes = [
        _as_it_comes(task, image_size=image_size, camera=camera, seed=seed) for _ in range(_EPISODES)
    ]
    theirs, their_frame_s = min(as_it_comes, key=lambda one: one[0].cpu_s)
    frames = {
        quality: _frame_s(task, quality, camera, image_size=image_size, seed=seed, repeats=count)
        for quality, count in (("full", _DEFAULT_FRAMES), ("fast", repeats), ("simplified", repeats))
    }
    started = time.process_time()
    env = MetaWorldEnv(task=task, image_size=image_size, cameras=(camera,))
    load_s = time.process_time() - started
    reset_s = best_cpu_s(lambda: env.start_episode(seed=seed), repeats=repeats)
    bare_s, step_s, expert_s = _steps_s(env, seed=seed, repeats=min(repeats, 3))
    ours = min(
        (_ours(env, camera, seed, execute_horizon) for _ in range(_EPISODES)), key=lambda one: one.cpu_s
    )
    env.close()
    limit_s = ours.steps * bare_s + ours.frames * bare_frame_s
    bare = "a bare plane drawn"
    return [
        _ms("control period, bare mj_step", bare_s, note="5 substeps, states of an expert's episode"),
        _ms("control period, env.advance", step_s, bare_s, "bare mj_step", "with state, reward and success"),
        _ms("expert's action", expert_s),
        _ms("reset", reset_s),
        _ms("loading the task", load_s),
        _ms(f"frame of {image_size} px, bare", bare_frame_s),
        _ms("frame, package with gymnasium's defaults", their_frame_s, bare_frame_s, bare),
        _ms("frame, render_quality=full", frames["full"], bare_frame_s, bare),
        _ms("frame, render_quality=fast", frames["fast"], bare_frame_s, bare),
        _ms("frame, render_quality=simplified", frames["simplified"], bare_frame_s, bare),
        _ms("episode, package with gymnasium's defaults", theirs.cpu_s, note=_told(theirs)),
        _ms("episode, ours", ours.cpu_s, limit_s, "bare mj_step and bare frames", _told(ours)),
        Row(name="times fewer CPU seconds an episode", value=theirs.cpu_s / ours.cpu_s, unit="x"),
    ]


def _told(episode: Episode) -> str:
    end = "success" if episode.success else "no success"
    return f"{episode.steps} steps, {episode.frames} frames, {end}"


def _ms(name: str, seconds: float, limit: float | None = None, limit_name: str = "", note: str = "") -> Row:
    limit_ms = None if limit is None else 1e3 * limit
    return Row(name=name, value=1e3 * seconds, unit="ms", limit=limit_ms, limit_name=limit_name, note=note)


def _as_it_comes(task: str, *, image_size: int, camera: str, seed: int) -> tuple[Episode, float]:
    """Run an episode of the package's environment, one frame per step; return it and the time of a frame."""
    ours = MetaWorldEnv(task=task)
    ours.start_episode(seed=seed)
    simulation = make_simulation(task, render_mode="rgb_array", camera_name=camera, image_size=image_size)
    simulation._freeze_rand_vec, simulation._last_rand_vec = True, ours.simulation._last_rand_vec
    expert = ENV_POLICY_MAP[f"{task}-v3"]()
    simulation.reset()
    simulation.render()  # starts OpenGL
    started = time.process_time()
    seen, _ = simulation.reset()
    steps, success = 0, False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the expert warns that its actions will be clipped
        while not success and steps < ours.max_steps:
            simulation.render()
            seen, _, _, _, info = simulation.step(expert.get_action(seen))
            steps, success = steps + 1, bool(info["success"])
    cpu_s = time.process_time() - started
    frame_s = best_cpu_s(simulation.render, repeats=_DEFAULT_FRAMES)
    simulation.close()
    return Episode(steps=steps, frames=steps, cpu_s=cpu_s, success=success), frame_s


def _ours(env: MetaWorldEnv, camera: str, seed: int, execute_horizon: int) -> Episode:
    """Run the same episode as an evaluation does: a frame whenever a policy, here the expert, would look."""
    started = time.process_time()
    env.start_episode(seed=seed)
    frames, outcome = 0, None
    while outcome is None or not (outcome.terminated or outcome.truncated):
        if env.num_steps % execute_horizon == 0:
            env.render_camera(camera)
            frames += 1
        outcome = env.advance(env.expert_action())
    cpu_s = time.process_time() - started
    return Episode(steps=env.num_steps, frames=frames, cpu_s=cpu_s, success=outcome.success)


def _steps_s(env: MetaWorldEnv, *, seed: int, repeats: int) -> tuple[float, float, float]:
    """Return mean times of a control period: bare physics, our step, the expert's action [s]."""
    model, data = env.simulation.model, env.simulation.data
    size = mujoco.mj_stateSize(model, _STATE)
    states, steps_s, experts_s = [], [], []
    for _ in range(repeats):
        env.start_episode(seed=seed)
        step_s = expert_s = 0.0
        states = []
        for _ in range(env.max_steps):
            started = time.process_time()
            action = env.expert_action()
            chosen = time.process_time()
            outcome = env.advance(action)
            step_s, expert_s = step_s + time.process_time() - chosen, expert_s + chosen - started
            states.append(np.empty(size))
            mujoco.mj_getState(model, data, states[-1], _STATE)
            if outcome.terminated:
                break
        steps_s.append(step_s / len(states))
        experts_s.append(expert_s / len(states))
    bare_s = min(_bare_step_s(env, states) for _ in range(repeats))
    return bare_s, min(steps_s), min(experts_s)


def _bare_step_s(env: MetaWorldEnv, states: list[np.ndarray]) -> float:
    """Return the mean time of the physics of one control period alone, from each of the states on [s]."""
    model, data = env.simulation.model, env.simulation.data
    total = 0.0
    for state in states:
        mujoco.mj_setState(model, data, state, _STATE)
        started = time.process_time()
        mujoco.mj_step(model, data, nstep=env.simulation.frame_skip)
        total += time.process_time() - started
    return total / len(states)


def _frame_s(task: str, quality: str, camera: str, *, image_size: int, seed: int, repeats: int) -> float:
    env = MetaWorldEnv(task=task, image_size=image_size, cameras=(camera,), render_quality=quality)
    env.start_episode(seed=seed)
    env.render_camera(camera)  # compiles the shaders
    seconds = best_cpu_s(lambda: env.render_camera(camera), repeats=repeats)
    env.close()
    return seconds


def _bare_frame_s(image_size: int, *, repeats: int) -> float:
    """Return the time of the cheapest picture of that size: one plane, no texture, no shadow [s]."""
    model = mujoco.MjModel.from_xml_string(_EMPTY)
    apply_quality(model, "fast")
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = Renderer(model=model, max_height=image_size, max_width=image_size)

    def draw() -> None:
        renderer.render(data, camera_id=0, height=image_size, width=image_size)

    draw()  # compiles the shaders
    seconds = best_cpu_s(draw, repeats=repeats)
    renderer.close()
    return seconds
