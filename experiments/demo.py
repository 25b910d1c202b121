"""Shows a policy that obeys sentences on the tabletop: a film, a page and a table, within a minute.

    python -m experiments.demo
    python -m experiments.demo 'sentences=[pick up the red cube,open the blue drawer]' seed=500020
    python -m experiments.demo path=outputs/quickstart/train

Each sentence is played in the first scene from `seed` on that has the objects that it names, two in one scene
where both are there. Without `sentences`, five are taken from the scenes themselves, the first two from one
scene. Any wording of envs/tabletop/instructions.py names a goal, and the goal decides about success.
"""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from envs.base import ManipulationEnv
from envs.episode_request import EpisodeRequest
from envs.evaluation.statistics import wilson_interval
from envs.film_files import write_video
from envs.registry import make_env, probe_env
from envs.rollout import EpisodeResult, run_episodes
from envs.tabletop.env import GoalNotInScene
from envs.tabletop.instructions import read_instruction
from envs.videos import Replay, replay, with_still_end
from experiments.config import cli, schema
from experiments.config.overrides import overrides
from experiments.config.releasing import DemoRun
from experiments.config.simulation import env_configs
from experiments.config.trained_setting import describe
from experiments.recorded_seeds import require_unseen_scenes
from experiments.reports.demo import with_caption, write_demo_page
from experiments.reports.tables import format_lines
from policies.vla_policy import PolicyCheckpoint, VLAPolicy, load_policy_checkpoint
from vla.errors import Refusal
from vla.files import DirectoryLock, atomic_write_json
from vla.registry import SettingError

schema.register("demo")

NUM_SENTENCES = 5
SHOWN = ("lift", "lift", "place", "stack", "open_drawer", "push", "reach", "reach", "close_drawer")
MOST_SCENES = 3000  # that are searched for the objects of a sentence
FILM_SIZE = {"video_height": 480, "video_width": 640}  # [pixels]


class NoSuchScene(Refusal):
    """No scene has the objects that a sentence names."""


class Scene(NamedTuple):
    """Where a sentence is played."""

    sentence: str
    task: str
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """How a sentence went.

    Attributes:
        sentence: as it was given.
        task: that it names.
        seed: of the scene.
        success: whether its goal was reached.
        seconds: of simulated time until then, or until the policy had no more time.
    """

    sentence: str
    task: str
    seed: int
    success: bool
    seconds: float


class Scenes:
    """The scenes of each task, one environment for each; nothing is drawn."""

    def __init__(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        self._configs = configs
        self._envs: dict[str, ManipulationEnv] = {}

    def env(self, task: str) -> ManipulationEnv:
        """Return the environment of a task."""
        if task not in self._envs:
            self._envs[task] = make_env(self._configs[task])
        return self._envs[task]

    def with_sentences(self, sentences: Sequence[str], *, seed: int) -> list[Scene]:
        """Return a scene for each sentence; an earlier one if that has the objects.

        Raises:
            SettingError: a sentence names no goal, or that of a task which the policy does not know.
            NoSuchScene: no scene that was tried has the objects.
        """
        found: list[Scene] = []
        for sentence in sentences:
            task, _ = read_instruction(sentence)
            if task not in self._configs:
                raise SettingError(
                    f"sentences names {sentence!r}, which is the task {task!r}; the policy knows "
                    f"{', '.join(self._configs)}. Give other sentences, or path of another policy"
                )
            earlier = [scene.seed for scene in found if scene.task == task]
            tried = itertools.chain(earlier, range(seed, seed + MOST_SCENES))
            where = next((one for one in tried if self._has_goal(task, sentence, one)), None)
            if where is None:
                raise NoSuchScene(
                    f"none of the scenes {seed} to {seed + MOST_SCENES - 1} has the objects of {sentence!r}; "
                    "give another seed, or name other objects"
                )
            found.append(Scene(sentence, task, where))
        return found

    def _has_goal(self, task: str, sentence: str, seed: int) -> bool:
        try:
            self.env(task).start_episode(seed=seed, options={"instruction": sentence})
        except GoalNotInScene:
            return False
        return True

    def suggested(self, *, seed: int) -> list[Scene]:
        """Return five scenes with a goal that each suggests; a task's second one is in its first scene."""
        order = [task for task in SHOWN if task in self._configs]
        found: list[Scene] = []
        for task in itertools.islice(itertools.cycle(order), NUM_SENTENCES):
            count = sum(scene.task == task for scene in found)
            env, where = self.env(task), seed + count // 2
            env.start_episode(seed=where)
            sentence = env.swapped_instruction() if count % 2 else env.instruction
            found.append(Scene(sentence, task, where))
        return found

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs.values():
            env.close()


def play(
    policy: VLAPolicy,
    scenes: Sequence[Scene],
    configs: Mapping[str, dict[str, Any]],
    *,
    execute_horizon: int,
    num_workers: int,
) -> list[EpisodeResult]:
    """Let the policy act on each sentence, and return how it went, in their order.

    Raises:
        SpecMismatch: the policy was made for another robot.
        WorkerError: an environment failed.
    """
    requests = [
        EpisodeRequest(
            task=scene.task,
            env_config=configs[scene.task],
            seed=scene.seed,
            options={"instruction": scene.sentence},
        )
        for scene in scenes
    ]
    results = run_episodes(
        policy,
        requests,
        execute_horizon=execute_horizon,
        num_workers=num_workers,
        envs_per_worker=-(-len(requests) // num_workers),
    )
    with contextlib.closing(results):
        ended = [(result, result.request) for result in results]
    return [next(result for result, request in ended if request is wanted) for wanted in requests]


def write_film(
    path: Path, results: Sequence[EpisodeResult], played: Sequence[Played], *, num_workers: int
) -> None:
    """Write the episodes one after another, each under its sentence, and how it ended."""
    replays = [
        Replay(
            task=result.request.task,
            env_config={**result.request.env_config, **FILM_SIZE},
            seed=result.request.seed,
            options=result.request.options,
            actions=result.actions,
        )
        for result in results
    ]
    seen = replay(replays, num_workers=num_workers)

    def frames() -> Iterator[Any]:
        for number, (one, shown) in enumerate(zip(played, seen, strict=True), start=1):
            last = len(shown.frames) - 1
            for index, frame in enumerate(with_still_end(shown.frames)):
                end = f"{'done' if one.success else 'not done'} after {one.seconds:.1f} s"
                yield with_caption(
                    frame, f"{number}. {one.sentence}", end if index >= last else "", is_good=one.success
                )

    write_video(path, frames(), fps=seen[0].fps)


def rows_of(played: Sequence[Played]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table."""
    rows = [
        [one.sentence, one.task, str(one.seed), "yes" if one.success else "no", f"{one.seconds:.1f}"]
        for one in played
    ]
    return ["sentence", "task", "scene", "success", "seconds"], rows


def require_tabletop(run: DemoRun) -> None:
    """Check that the policy acts on the tabletop.

    Raises:
        SettingError: it was trained elsewhere.
    """
    if run.env["family"] != "tabletop":
        raise SettingError(
            f"env.family is {run.env['family']!r}, but sentences are played on the tabletop alone; films of "
            f"another policy are made by: python -m experiments.evaluate path={cli.portable_path(run.path)}"
        )


def demonstrate(run: DemoRun, out_dir: Path, *, started: Callable[[], float]) -> list[Played]:
    """Play the sentences, print the table, and write film, page and numbers.

    Args:
        run: the settings.
        out_dir: gets demo.mp4, report.html and demo.json.
        started: returns the seconds since the program began.
    """
    torch.set_num_threads(1)  # the workers simulate meanwhile; on busy cores two threads wait for each other
    loaded = load_policy_checkpoint(run.path)
    policy = VLAPolicy(model=loaded.model, processor=loaded.processor)
    print(describe(loaded.provenance, source=Path(run.path), env=run.env, tasks=run.tasks), flush=True)
    configs: Mapping[str, dict[str, Any]] = env_configs(run.env, run.tasks)
    shown = probe_env(configs)
    policy.robot_spec.require_same(shown, mine="the policy", theirs="the tabletop of this run")
    with contextlib.closing(Scenes(configs)) as scenes:
        chosen = (
            scenes.with_sentences(run.sentences, seed=run.seed)
            if run.sentences
            else scenes.suggested(seed=run.seed)
        )
    _require_unseen(loaded, chosen)
    results = play(policy, chosen, configs, execute_horizon=run.execute_horizon, num_workers=run.num_workers)
    played = [
        Played(**scene._asdict(), success=result.success, seconds=result.steps / shown.control_hz)
        for scene, result in zip(chosen, results, strict=True)
    ]
    header, rows = rows_of(played)
    print(format_lines(header, rows))
    out_dir.mkdir(parents=True, exist_ok=True)
    write_film(out_dir / "demo.mp4", results, played, num_workers=run.num_workers)
    successes = sum(one.success for one in played)
    interval = wilson_interval(successes, len(played)).in_percent()
    write_demo_page(
        out_dir / "report.html",
        film=out_dir / "demo.mp4",
        header=header,
        rows=rows,
        headline=f"{successes} of {len(played)}",
        title=f"{cli.portable_path(run.path)} obeys {len(played)} sentences",
        took_s=started(),
        commands=commands(run, played),
        note=f"Five sentences measure little: the interval of this success is {interval} %. What the policy "
        "achieves in many scenes is on its card, or comes from experiments.evaluate.",
    )
    atomic_write_json(
        out_dir / "demo.json",
        {"policy_id": loaded.checkpoint_id, "sentences": [dataclasses.asdict(one) for one in played]},
    )
    return played


def _require_unseen(loaded: PolicyCheckpoint, scenes: Sequence[Scene]) -> None:
    """Refuse scenes of which the policy was given demonstrations."""
    for scene in scenes:
        require_unseen_scenes(
            loaded.provenance,
            family="tabletop",
            tasks=[scene.task],
            first_seed=scene.seed,
            num_episodes=1,
            key="seed",
        )


def commands(run: DemoRun, played: Sequence[Played]) -> list[tuple[str, str]]:
    """Return what was typed, and what plays the same sentences, to be changed."""
    here = cli.short_path(run.path)
    again = overrides({"path": here, "sentences": [one.sentence for one in played], "seed": run.seed})
    return [
        (cli.typed_command("demo"), "this page"),
        (" ".join(["python -m experiments.demo", *map(_quoted, again)]), "the sentences, to be changed"),
    ]


def _quoted(word: str) -> str:
    return f"'{word}'" if " " in word else word


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="demo")
def main(config: DictConfig) -> None:
    """Show it."""
    began = time.monotonic()
    run = schema.typed(config, DemoRun)
    require_tabletop(run)
    out_dir = Path(HydraConfig.get().runtime.output_dir)
    with DirectoryLock(out_dir):
        demonstrate(run, out_dir, started=lambda: time.monotonic() - began)
    took = time.monotonic() - began
    print(f"\nfilm: {out_dir / 'demo.mp4'}\npage: {out_dir / 'report.html'}\n{took:.0f} s in all")


if __name__ == "__main__":
    cli.run(main)
