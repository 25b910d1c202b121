"""From nothing to a measured, exported policy: records, trains, evaluates, exports, evaluates the export.

    python -m experiments.quickstart

Each stage is one of the other programs' functions; finished stages are not repeated when it runs again. The
bundle is evaluated in a process of its own, which proves that it needs no torch.
"""

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from envs.evaluation.results import Evaluation, folder_of_mode, format_table, load_evaluation
from experiments.closed_loop import compare_executed
from experiments.collect import collect_dataset
from experiments.config import cli, schema
from experiments.config.overrides import overrides
from experiments.evaluate import evaluate_instruction_modes, load_policy
from experiments.export import export_checkpoint
from experiments.reports.pages import write_quickstart_page
from experiments.reports.tables import format_table as format_rows
from experiments.stages import Stages
from experiments.train import require_settings, shortfall, train_policy
from experiments.training_parts import require_trainable
from vla.files import DirectoryLock, atomic_write_text
from vla.model.checkpoint import list_checkpoints, read_state, resolve_checkpoint

schema.register("quickstart")

STAGES_FILE = "stages.json"
MADE_HERE = ("dataset", "cache", "train", "evaluation", "bundle", "bundle_evaluation")


class Quickstart:
    """The stages, all in one directory."""

    def __init__(self, *, run: schema.QuickstartRun, out_dir: Path) -> None:
        self.run, self.out_dir = run, out_dir
        settings = cli.config_with_paths(dataclasses.replace(run, fresh=False), cli.short_path)
        del settings["trainer"]["max_minutes"]  # may be raised, to train on
        del settings["from_run"]
        self.stages = Stages(
            out_dir / STAGES_FILE,
            settings=settings,
            binds=bool(list_checkpoints(out_dir / "train")),  # before, nothing depends on most of them
        )

    def all(self) -> None:
        """Run what is not done yet, then write the report and print the summary."""
        self.reopen_training()
        self.stages.run("record", self.record)
        self.stages.run("train", self.train)
        self.stages.run("evaluate", self.evaluate)
        self.stages.run("export", self.export)
        self.stages.run("evaluate the bundle without torch", self.evaluate_bundle)
        self.summarize()

    def reopen_training(self) -> None:
        """Continue a training that trainer.max_minutes had ended, if it has more time now."""
        if "train" not in self.stages.finished or self.shortfall() is None:
            return
        cap = self.run.trainer.max_minutes
        elapsed_s = read_state(resolve_checkpoint(self.out_dir / "train"))["elapsed_s"]
        if cap is None or elapsed_s < 60 * cap:
            self.stages.reopen("train")
            for name in MADE_HERE[MADE_HERE.index("train") + 1 :]:
                shutil.rmtree(self.out_dir / name, ignore_errors=True)

    def shortfall(self) -> str | None:
        """Return a sentence if the training ended before its budget, else None."""
        return shortfall(self.out_dir / "train", budget=self.run.trainer.num_samples)

    def record(self) -> None:
        """Record demonstrations; continues a recording that was interrupted."""
        run = self.run
        collect_dataset(root=Path(run.dataset), env=run.env, tasks=run.tasks, collect=run.collect)

    def train(self) -> None:
        """Train; continues from the newest checkpoint."""
        result = train_policy(self.run, self.out_dir / "train")
        print(
            f"{result.num_samples:,} samples in {result.step} steps, {result.samples_per_s:.0f} samples/s, "
            f"checkpoint {result.checkpoint}"
        )

    def evaluate(self) -> None:
        """Evaluate the checkpoint on the reporting seeds in every instruction mode."""
        settings = self.run.evaluation
        loaded = load_policy(
            "checkpoint", self.out_dir / "train", device=settings.device, num_workers=settings.num_workers
        )
        results = evaluate_instruction_modes(
            loaded.policy,
            policy_id=loaded.policy_id,
            provenance=loaded.provenance,
            env=self.run.env,
            tasks=self.run.tasks,
            settings=settings,
            run_dir=self.out_dir / "evaluation",
        )
        print(format_table(*results.values()))

    def export(self) -> None:
        """Write the bundle, if it answers as the checkpoint does."""
        report = export_checkpoint(
            checkpoint=self.out_dir / "train",
            bundle=self.out_dir / "bundle",
            replace=True,
        )
        atomic_write_text(self.out_dir / "parity.txt", f"{report.table()}\n")
        print(report.table())

    def evaluate_bundle(self) -> None:
        """Evaluate the bundle in a process that fails if anything imports torch.

        Raises:
            RuntimeError: that process failed; its output is above.
        """
        settings = {key: value for key, value in self.run.env.items() if key != "family"}
        command = [
            *(sys.executable, "-P", "-m", "experiments.evaluate", "policy=bundle"),
            *overrides({"path": self.out_dir / "bundle", "out_dir": self.out_dir / "bundle_evaluation"}),
            *overrides({"tasks": self.run.tasks}),
            *overrides({"env": self.run.env["family"]}),
            *overrides(settings, prefix="env."),
            *overrides({"plugins": self.run.plugins}),
            *overrides(dataclasses.asdict(self.run.bundle_evaluation), prefix="evaluation."),
        ]
        places = [path or str(Path.cwd()) for path in sys.path]  # not its own folder first
        environment = cli.child_environment() | {"PYTHONPATH": os.pathsep.join(places)}
        if subprocess.run(command, check=False, env=environment).returncode != 0:
            raise BundleEvaluationFailed("the evaluation of the bundle failed; its messages are above")

    def results(self, folder: str, modes: list[str]) -> dict[str, Evaluation]:
        """Return the evaluations of a folder by instruction mode."""
        return {mode: load_evaluation(folder_of_mode(self.out_dir / folder, mode)) for mode in modes}

    def summarize(self) -> None:
        """Print what came out, and where it lies."""
        checkpoint = self.results("evaluation", self.run.evaluation.instruction_modes)
        bundle = self.results("bundle_evaluation", self.run.bundle_evaluation.instruction_modes)
        print(f"Checkpoint, {self.run.evaluation.episodes_per_task} held-out scenes a task:")
        print(format_table(*checkpoint.values()))
        print(f"\nBundle (onnxruntime, no torch), {self.run.bundle_evaluation.episodes_per_task} a task:")
        print(format_table(*bundle.values()))
        closed_loop = compare_executed(checkpoint["original"], bundle["original"]).sentence()
        print(closed_loop)
        print()
        seconds = self.stages.seconds
        rows = [[name, f"{seconds[name] / 60:.1f}"] for name in self.stages.finished]
        print(format_rows(["stage", "minutes"], [*rows, ["all", f"{self.stages.total_s / 60:.1f}"]]))
        page = self.out_dir / "report.html"
        missing = self.shortfall()
        write_quickstart_page(
            page,
            checkpoint=checkpoint,
            bundle=bundle,
            metrics_path=self.out_dir / "train" / "metrics.jsonl",
            parity=(self.out_dir / "parity.txt").read_text(encoding="utf-8"),
            closed_loop=closed_loop,
            seconds=self.stages.seconds,
            commands=self.commands(),
            shortfall=missing,
        )
        if missing is not None:
            print(f"\n{missing}")
        print(f"\nbundle: {self.out_dir / 'bundle'}\nreport: {page}")

    def commands(self) -> list[tuple[str, str]]:
        """Return what a person would type to repeat each stage."""
        typed = cli.typed_command("quickstart")
        scene = overrides({"tasks": self.run.tasks, "env.level": self.run.env["level"]})
        evaluate = ["python", "-m", "experiments.evaluate"]
        checkpoint = [*evaluate, *overrides({"path": self.out_dir / "train"}), *scene]
        bundle = [*evaluate, "policy=bundle", *overrides({"path": self.out_dir / "bundle"}), *scene]
        return [
            (typed, "all of this"),
            (shlex.join(checkpoint), "the checkpoint alone"),
            (shlex.join([*bundle, "evaluation=bundle"]), "the bundle alone"),
        ]


class BundleEvaluationFailed(RuntimeError):
    """The process that evaluates the bundle ended with an error."""


def start_over(out_dir: Path) -> None:
    """Remove what an earlier run made, and nothing else."""
    for name in MADE_HERE:
        shutil.rmtree(out_dir / name, ignore_errors=True)
    (out_dir / STAGES_FILE).unlink(missing_ok=True)


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="quickstart")
def main(config: DictConfig) -> None:
    """Run all stages."""
    run = schema.typed(config, schema.QuickstartRun)
    out_dir = Path(HydraConfig.get().runtime.output_dir)
    require_settings(run, run_dir=out_dir / "train")
    require_trainable(run, run_dir=out_dir / "train")
    with DirectoryLock(out_dir):
        if run.fresh:
            start_over(out_dir)
        Quickstart(run=run, out_dir=out_dir).all()


if __name__ == "__main__":
    cli.run(main)
