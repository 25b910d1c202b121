"""Demonstrations from a policy's own rollouts: an expert finishes what the policy began.

The policy acts in scenes of its own. Each episode is then executed again up to a moment at which the scripted
expert takes over, and what the expert does from there is recorded (DAgger, arXiv:1011.0686, in the form of
HG-DAgger, arXiv:1810.02890: whole stretches by the expert). Where the policy failed it is interrupted several
times, else once. An expert that does not reach the goal from there leaves nothing behind; it takes over after
half the time instead, and half of that, until it does: what the policy has to learn is what to do while
something can still be done. Where not even that helps it is counted.

Where there is no expert, the episodes in which the policy succeeded are demonstrations themselves
(`teacher=itself`).
"""

import dataclasses
import itertools
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tqdm import tqdm

from envs.collection import TakeOver, collect_takeovers
from envs.evaluation.results import GREATEST_SEED, Evaluation, actions_path
from envs.registry import probe_env
from experiments.collect import geometry_of, save_demonstration
from experiments.reports.tables import format_table
from vla.data.demonstrations import BALANCES
from vla.data.writer import DatasetWriter
from vla.errors import VLAError
from vla.registry import Choices, Range, check_attributes

TEACHERS = ("expert", "itself")
COUNTS_HEADER = ("task", "policy succeeded", "take-overs", "recorded", "expert failed")
_STREAM = 0xDA66E2  # keeps this randomness apart from the scene, which is drawn from the seed alone


class NothingToCorrect(VLAError):
    """No take-over led to a demonstration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectionSettings:
    """How a policy's rollouts become demonstrations."""

    episodes_per_task: Annotated[int, Range(1, 10**5), "that the policy acts in, in each round"] = 100
    first_seed: Annotated[
        int, Range(0, GREATEST_SEED), "of the first round; later ones go on where it ended"
    ] = 300_000
    teacher: Annotated[
        str,
        Choices(*TEACHERS),
        "who finishes; itself: nobody takes over, its successes are recorded",
    ] = "expert"
    after_success: Annotated[int, Range(0, 100), "take-overs in an episode in which it succeeded"] = 1
    after_failure: Annotated[int, Range(0, 100), "and in one in which it failed"] = 3
    shortest_lead: Annotated[int, Range(1, 10**4), "control periods that it acts for before one"] = 4
    balance: Annotated[
        str, Choices(*BALANCES), "what has equal shares in training: each round's corrections, ..."
    ] = "datasets"
    storage: Annotated[str, Choices("video", "image"), "exact frames, or smaller ones"] = "image"
    num_workers: Annotated[int, Range(1, 256), "recording processes"] = 2

    def __post_init__(self) -> None:
        check_attributes(self, where="corrections")

    def first_seed_of(self, number: int) -> int:
        """Return the first seed of a round, which counts from 1."""
        return self.first_seed + (number - 1) * self.episodes_per_task


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectionCounts:
    """What came of a task's episodes: of the policy, and of the expert's take-overs."""

    episodes: int
    successes: int  # of the policy
    takeovers: int
    recorded: int

    @property
    def failed(self) -> int:
        """How often the expert did not reach the goal."""
        return self.takeovers - self.recorded


def plan_takeovers(evaluation: Evaluation, settings: CorrectionSettings) -> list[TakeOver]:
    """Choose when the expert takes over in each episode of an evaluation; a function of its seeds.

    The time that the policy acted is cut into as many pieces as there are take-overs, and each falls
    somewhere into its piece. Where it succeeded the last periods, in which the goal held, are left out.

    Args:
        evaluation: episodes of the policy, whose executed actions were kept.
        settings: how many take-overs, and the earliest.

    Raises:
        FileNotFoundError: the actions of an episode are gone.
    """
    takeovers = []
    for row in evaluation.rows:
        actions = np.load(actions_path(evaluation.run_dir, row.task, row.seed), allow_pickle=False)
        if settings.teacher == "itself":
            if row.success:
                takeovers.append(TakeOver(task=row.task, seed=row.seed, lead=actions[:0], own=actions))
            continue
        count = settings.after_success if row.success else settings.after_failure
        end = len(actions) - (1 if row.success else 0)  # the last action of all may be the one that succeeds
        if count == 0 or end <= settings.shortest_lead:
            continue
        rng = np.random.default_rng([_STREAM, row.seed, zlib.crc32(row.task.encode())])
        edges = np.linspace(settings.shortest_lead, end, count + 1)
        leads = {
            int(rng.integers(int(low), max(int(low) + 1, int(high))))
            for low, high in itertools.pairwise(edges)
        }
        takeovers += [TakeOver(task=row.task, seed=row.seed, lead=actions[:lead]) for lead in sorted(leads)]
    return takeovers


def record_corrections(
    root: Path, evaluation: Evaluation, *, settings: CorrectionSettings, geometry: bool = False
) -> dict[str, CorrectionCounts]:
    """Record how the expert finishes the episodes of an evaluation; continues what was interrupted.

    Args:
        root: directory of the dataset.
        evaluation: episodes of the policy, whose executed actions were kept.
        settings: where the expert takes over.
        geometry: whether to measure depth and points in each picture.

    Returns:
        What came of it, by task.

    Raises:
        NothingToCorrect: not one take-over led to the goal.
        SettingError: these environments measure no geometry.
        DatasetError: `root` holds something else.
        WorkerError: an environment raised, or a worker died.
    """
    configs = evaluation.plan.env_configs
    takeovers = plan_takeovers(evaluation, settings)
    planned = Counter(one.task for one in takeovers)
    env = _shared(configs)
    writer = DatasetWriter(
        root,
        robot_spec=probe_env(configs),
        storage=settings.storage,
        geometry=geometry_of(env["family"]) if geometry else None,
        extra_info={"env": env, "corrected_policy": evaluation.policy_id},
    )
    with writer:
        recorded = _record_missing(writer, configs, takeovers, settings=settings)
    if not recorded:
        raise NothingToCorrect(
            f"{len(takeovers)} take-overs in {len(evaluation.rows)} episodes led to no demonstration"
            + ("; raise corrections.after_success or after_failure" if not takeovers else "")
        )
    results = evaluation.tasks
    return {
        task: CorrectionCounts(
            episodes=results[task].episodes,
            successes=results[task].successes,
            takeovers=planned[task],
            recorded=recorded[task],
        )
        for task in configs
    }


def _record_missing(
    writer: DatasetWriter,
    configs: Mapping[str, Mapping[str, Any]],
    takeovers: Sequence[TakeOver],
    *,
    settings: CorrectionSettings,
) -> Counter[str]:
    """Record what a dataset lacks, with a bar, and return how many of each task it has then."""
    done = {(extra["task_name"], extra["seed"], extra["taken_over_at"]) for extra in writer.episode_extras}
    missing = [one for one in takeovers if _place(one) not in done]
    with tqdm(total=len(missing), desc="correcting", unit="episode") as bar:
        while missing:
            episodes = collect_takeovers(
                configs,
                missing,
                num_workers=settings.num_workers,
                geometry=writer.geometry is not None,
                on_failure=lambda _task, _seed: _note(bar),
            )
            for episode in episodes:
                save_demonstration(writer, episode, {"taken_over_at": episode.taken_over_at})
                done.add((episode.task, episode.seed, episode.taken_over_at))
                bar.update()
            failed = [one for one in missing if _place(one) not in done]
            missing = [one for one in _sooner(failed, settings.shortest_lead) if _place(one) not in done]
            bar.total += len(missing)
    return Counter(str(task) for task, _, _ in done)


def _place(one: TakeOver) -> tuple[str, int, int]:
    """Return task, seed and time, which tell take-overs apart."""
    return one.task, one.seed, len(one.lead)


def _sooner(takeovers: Sequence[TakeOver], shortest: int) -> list[TakeOver]:
    """Return each after half the time, unless that is too short."""
    halved = (dataclasses.replace(one, lead=one.lead[: len(one.lead) // 2]) for one in takeovers)
    return list({_place(one): one for one in halved if len(one.lead) >= shortest}.values())


def _note(bar: "tqdm[Any]") -> None:
    bar.update()


def _shared(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the environments of all tasks have in common."""
    return {key: value for key, value in next(iter(configs.values())).items() if key != "task"}


def count_rows(counts: Mapping[str, CorrectionCounts]) -> list[list[str]]:
    """Return a row for each task under `COUNTS_HEADER`."""
    return [
        [task, f"{one.successes}/{one.episodes}", str(one.takeovers), str(one.recorded), str(one.failed)]
        for task, one in counts.items()
    ]


def counts_table(counts: Mapping[str, CorrectionCounts]) -> str:
    """Return the rows as a table for the terminal."""
    return format_table(COUNTS_HEADER, count_rows(counts))
