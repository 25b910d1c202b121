"""Compares two evaluations episode by episode: same task, same seed, same scene, two policies.

    python -m experiments.compare a=outputs/evaluate/first b=outputs/evaluate/second

Reports how much they differ, with an interval, and whether the difference is significant.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from envs.evaluation.comparison import compare, format_comparison
from envs.evaluation.results import Evaluation, folder_of_mode, load_evaluation
from experiments.config import cli, schema
from vla.files import atomic_write_json

schema.register("compare")


def evaluation_folder(path: Path, mode: str) -> Path:
    """Return `path` if it is an evaluation itself, else its folder for an instruction mode, there or not.

    Of a training run it is that of the evaluation that followed.
    """
    if (path / "plan.json").exists():
        return path
    return folder_of_mode(path / "evaluation" if (path / "evaluation").exists() else path, mode)


def open_evaluation(path: Path, mode: str) -> Evaluation:
    """Load the evaluation in `path`, or in its folder for an instruction mode.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not finished; what is there would flatter it, as successes end before failures do.
    """
    evaluation = load_evaluation(evaluation_folder(path, mode))
    if not evaluation.is_complete:
        raise ValueError(
            f"{evaluation.run_dir} is not finished: {len(evaluation.rows)} of "
            f"{len(evaluation.plan.requests())} episodes, and successes end first; continue it with the "
            "command that began it"
        )
    return evaluation


def require_same_scenes(a: Evaluation, b: Evaluation, *, ignore: Sequence[str] = ()) -> None:
    """Check that the tasks that both have were run in the same environments, settings in `ignore` apart.

    Raises:
        ValueError: a task differs in level, wording, image size or any other setting.
    """
    for task in set(a.plan.env_configs) & set(b.plan.env_configs):
        config_a, config_b = a.plan.env_configs[task], b.plan.env_configs[task]
        different = {
            key: (config_a.get(key), config_b.get(key))
            for key in {*config_a, *config_b}
            if key not in ignore and config_a.get(key) != config_b.get(key)
        }
        if different:
            raise ValueError(
                f"task {task!r} was evaluated in different environments, so its episodes are no pairs; "
                f"setting: (a, b) = {different}"
            )


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="compare")
def main(config: DictConfig) -> None:
    """Compare."""
    run = schema.typed(config, schema.CompareRun)
    schema.require_inputs(run)
    a = open_evaluation(Path(run.a), run.instruction_mode)
    b = open_evaluation(Path(run.b), run.instruction_mode)
    require_same_scenes(a, b)
    comparison = compare(a.rows, b.rows)
    name_a, name_b = cli.short_path(run.a), cli.short_path(run.b)
    print(format_comparison(comparison, name_a=name_a, name_b=name_b))
    path = Path(HydraConfig.get().runtime.output_dir) / "comparison.json"
    values = {
        "a": {"path": name_a, "policy_id": a.policy_id},
        "b": {"path": name_b, "policy_id": b.policy_id},
        "verdict": comparison.verdict(name_a, name_b),
        **dataclasses.asdict(comparison),
    }
    atomic_write_json(path, values)
    print(f"written to {path}")


if __name__ == "__main__":
    cli.run(main)
