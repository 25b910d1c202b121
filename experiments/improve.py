"""Improves a policy on its own rollouts: it acts, the scripted expert finishes, and it trains on both.

    python -m experiments.improve path=outputs/train/tabletop rounds=2

A round lets the policy act in new scenes, records how the expert finishes what it began (corrections.py), and
trains the policy further on old and new demonstrations. Before the first round and after each it is evaluated
on the same scenes. Settings are those of the run that trained it, or that the policy keeps; demonstrations
that are asked for and lacking are recorded first. Finished stages are not repeated when it runs again, and
what was interrupted continues.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from envs.evaluation.comparison import compare, format_comparison
from envs.evaluation.evaluate import evaluate
from envs.evaluation.results import Evaluation, EvaluationPlan, folder_of_mode, format_table, load_evaluation
from experiments.config import cli, rounds, schema
from experiments.config.improving import ImproveRun
from experiments.config.run_record import write_record
from experiments.config.simulation import env_configs
from experiments.config.trained_setting import read_provenance
from experiments.corrections import CorrectionCounts, counts_table, record_corrections
from experiments.evaluate import LoadedPolicy, evaluate_instruction_modes, load_policy
from experiments.recorded_seeds import require_unseen_scenes
from experiments.reports.improve import Round, write_improve_page
from experiments.stages import Stages
from experiments.train import record_if_asked, require_settings, train_policy
from experiments.training_parts import require_trainable
from vla.files import DirectoryLock, atomic_write_json, read_json
from vla.registry import SettingError

schema.register("improve")

STAGES_FILE = "stages.json"
COUNTS = "corrections.json"


class Improvement:
    """The rounds, all in one directory."""

    def __init__(self, *, run: ImproveRun, out_dir: Path) -> None:
        self.run, self.out_dir = run, out_dir
        settings = cli.config_with_paths(run, cli.short_path)
        del settings["rounds"]  # may be raised, to go on
        self.stages = Stages(
            out_dir / STAGES_FILE,
            settings=settings,
            binds=self.folder(0).exists(),  # before, nothing depends on them
            advice="or another out_dir",
        )

    def all(self) -> None:
        """Do what is not done yet, then write the page and print what came of it."""
        if self.run.record:
            self.stages.run("record", functools.partial(record_if_asked, self.run))
        self.stages.run("evaluate", functools.partial(self.evaluate, 0))
        for number in range(1, self.run.rounds + 1):
            for name, stage in (
                ("practice", self.practice),
                ("correct", self.correct),
                ("train", self.train),
                ("evaluate", self.evaluate),
            ):
                self.stages.run(f"round {number}: {name}", functools.partial(stage, number))
        self.summarize()

    def folder(self, number: int) -> Path:
        """Return the directory of a round; 0 is the policy as it came."""
        return rounds.folder(self.out_dir, number)

    def policy(self, number: int) -> Path:
        """Return where the policy lies as it is after a round."""
        return self.folder(number) / "train" if number else Path(self.run.path)

    def load(self, number: int) -> LoadedPolicy:
        """Load the policy as it is after a round."""
        settings = self.run.evaluation
        return load_policy(
            "checkpoint", self.policy(number), device=settings.device, num_workers=settings.num_workers
        )

    def evaluate(self, number: int) -> None:
        """Measure the policy as it is after a round."""
        loaded = self.load(number)
        results = evaluate_instruction_modes(
            loaded.policy,
            policy_id=loaded.policy_id,
            provenance=loaded.provenance,
            env=self.run.env,
            tasks=self.run.tasks,
            settings=self.run.evaluation,
            run_dir=self.folder(number) / "evaluation",
        )
        print(format_table(*results.values()))

    def practice(self, number: int) -> None:
        """Let the policy act in scenes of its own."""
        loaded, settings = self.load(number - 1), self.run.corrections
        plan = EvaluationPlan(
            env_configs=env_configs(self.run.env, self.run.tasks),
            episodes_per_task=settings.episodes_per_task,
            first_seed=settings.first_seed_of(number),
            execute_horizon=self.run.evaluation.execute_horizon,
            num_workers=self.run.evaluation.num_workers,
            envs_per_worker=self.run.evaluation.envs_per_worker,
            videos_per_task=0,
        )
        place = self.folder(number) / "practice"
        print(format_table(evaluate(loaded.policy, plan, run_dir=place, policy_id=loaded.policy_id)))

    def correct(self, number: int) -> None:
        """Record what the expert, or the policy itself, makes of these scenes."""
        place = self.folder(number)
        counts = record_corrections(
            rounds.recording(self.out_dir, number),
            load_evaluation(place / "practice"),
            settings=self.run.corrections,
            geometry=self.run.collect.geometry,
        )
        atomic_write_json(place / COUNTS, {task: dataclasses.asdict(one) for task, one in counts.items()})
        print(counts_table(counts))

    def train(self, number: int) -> None:
        """Train the policy further, on what it was trained on and on the recordings of all rounds so far."""
        recorded = map(str, rounds.recordings(self.out_dir, number))
        data = {
            **self.run.data,
            "more_datasets": [*(self.run.data.get("more_datasets") or ()), *recorded],
            "balance": self.run.corrections.balance,
        }
        run = dataclasses.replace(
            self.run,
            data=data,
            init_from=str(self.policy(number - 1)),
            init_statistics="checkpoint",
            trainer=dataclasses.replace(self.run.trainer, num_samples=self.run.samples_per_round),
        )
        result = train_policy(run, self.policy(number))
        print(f"{result.num_samples:,} samples in {result.step} steps, checkpoint {result.checkpoint}")

    def round(self, number: int) -> Round:
        """Return what came of a round."""
        place = self.folder(number)
        counts: Mapping[str, Any] = read_json(place / COUNTS) if number else {}
        return Round(
            number=number,
            evaluation=self._evaluation(number),
            counts={task: CorrectionCounts(**one) for task, one in counts.items()},
            metrics_path=place / "train" / "metrics.jsonl" if number else None,
        )

    def _evaluation(self, number: int) -> Evaluation:
        return load_evaluation(folder_of_mode(self.folder(number) / "evaluation", "original"))

    def summarize(self) -> None:
        """Print the table of all rounds and the verdict on the last one, and write the page."""
        done = [self.round(number) for number in range(self.run.rounds + 1)]
        first, last = done[0].evaluation, done[-1].evaluation
        comparison = compare(last.rows, first.rows)
        print(format_comparison(comparison, name_a=f"after round {self.run.rounds}", name_b="before"))
        page = self.out_dir / "report.html"
        write_improve_page(
            page,
            done,
            title=f"Improvement of {cli.portable_path(self.run.path)}",
            comparison=comparison,
            seconds=self.stages.seconds,
            command=cli.typed_command("improve"),
        )
        print(f"\npolicy: {self.policy(self.run.rounds)}\nreport: {page}")


def require_own_scenes(run: ImproveRun) -> None:
    """Check that no scene in which the policy practices is evaluated on, kept for reporting, or known to it.

    Raises:
        SettingError: there is one, or no instruction is original.
        SeedsWereRecorded: it was trained on one, such as in the practice of an earlier improvement.
    """
    if "original" not in run.evaluation.instruction_modes:
        raise SettingError("evaluation.instruction_modes lacks 'original', by which rounds are compared")
    first, end = run.corrections.first_seed, run.corrections.first_seed_of(run.rounds + 1)
    evaluated = range(run.evaluation.first_seed, run.evaluation.first_seed + run.evaluation.episodes_per_task)
    if first < evaluated.stop and evaluated.start < end:
        raise SettingError(
            f"the rounds practice on seeds {first} to {end - 1}, and seeds {evaluated.start} to "
            f"{evaluated.stop - 1} are evaluated; give another corrections.first_seed"
        )
    if end > schema.FIRST_REPORTED_SEED:
        raise SettingError(
            f"the rounds practice on seeds {first} to {end - 1}; those from {schema.FIRST_REPORTED_SEED} on "
            "are for reporting. Give another corrections.first_seed, or fewer episodes"
        )
    require_unseen_scenes(
        read_provenance(Path(run.path)) or {},
        family=run.env["family"],
        tasks=run.tasks,
        first_seed=first,
        num_episodes=end - first,
        key="corrections.first_seed",
    )


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="improve")
def main(config: DictConfig) -> None:
    """Do all rounds."""
    run = schema.typed(config, ImproveRun)
    schema.require_inputs(run)
    require_own_scenes(run)
    first = dataclasses.replace(run, init_from=run.path, init_statistics="checkpoint")
    require_settings(first)
    require_trainable(first)
    out_dir = Path(HydraConfig.get().runtime.output_dir)
    with DirectoryLock(out_dir):
        improvement = Improvement(run=run, out_dir=out_dir)
        write_record(config)
        improvement.all()


if __name__ == "__main__":
    cli.run(main)
