"""Compares evaluations episode by episode: same task, same seed, same scene, two policies.

    python -m experiments.compare a=outputs/evaluate/first b=outputs/train/second
    python -m experiments.compare a=outputs/quickstart

Each is a directory of `evaluate` (of one instruction mode or of all), of `train`, of `quickstart`, whose
checkpoint and bundle count, or of a sweep of such runs. Several are compared one by one, in order, or all
with a single one; without `b`, the first of `a` with the rest. What was taken is printed. Reports how much
two differ, with an interval, and whether the difference is significant.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from envs.evaluation.comparison import compare, format_comparison
from envs.evaluation.results import PLAN, Evaluation, folder_of_mode, load_evaluation
from experiments.config import cli, schema
from experiments.config.found import EVALUATION
from experiments.config.run_record import runs_below
from vla.files import atomic_write_json
from vla.registry import SettingError

schema.register("compare")

OF_RUNS = ("evaluation", "bundle_evaluation")  # where train and quickstart evaluate


def evaluation_folder(path: Path, mode: str) -> Path:
    """Return `path` if it is an evaluation itself, else its folder for an instruction mode, there or not.

    Of a training run it is that of the evaluation that followed.
    """
    if (path / PLAN).exists():
        return path
    after_training = path / OF_RUNS[0]
    return folder_of_mode(after_training if after_training.exists() else path, mode)


def evaluation_folders(path: Path, mode: str) -> list[Path]:
    """Return the folders of the evaluations that a directory stands for.

    Args:
        path: of `evaluate`, `train`, `quickstart` or a sweep; of a sweep, runs without an evaluation are left
            out.
        mode: of instructions, where there are several.

    Raises:
        FileNotFoundError: there is none; the message says what there is.
    """
    found = _folders(path, mode) or [one for run in runs_below(path) for one in _folders(run, mode)]
    if found:
        return found
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no directory {path}; give one of evaluate, train, quickstart or a sweep"
        )
    plans = [plan for depth in ("*", "*/*", "*/*/*") for plan in path.glob(f"{depth}/{PLAN}")]
    modes = sorted({plan.parent.name for plan in plans})
    if modes:
        raise FileNotFoundError(
            f"{path} holds no evaluation in the instruction mode {mode!r}; give instruction_mode="
            f"{' or '.join(modes)}"
        )
    raise FileNotFoundError(
        f"{path} holds no evaluation: neither it nor a run in it has {PLAN}; a policy that was not evaluated "
        "yet is by python -m experiments.evaluate"
    )


def _folders(path: Path, mode: str) -> list[Path]:
    places = dict.fromkeys(evaluation_folder(one, mode) for one in (path, *(path / name for name in OF_RUNS)))
    return [place for place in places if (place / PLAN).exists()]


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


def pairs_of(a: Path, b: Path | None, mode: str) -> list[tuple[Evaluation, Evaluation]]:
    """Return the evaluations to compare with each other.

    Args:
        a: a directory; see `evaluation_folders`.
        b: another one, or None for the evaluations of `a` alone.
        mode: of instructions, unless one of the two is the folder of a mode, which then counts for both.

    Raises:
        FileNotFoundError: one holds no evaluation.
        ValueError: an evaluation is not finished, or it is not clear which belong together.
    """
    single = [path for path in (a, b) if path is not None and (path / PLAN).exists()]
    if single:
        mode = load_evaluation(single[0]).plan.instruction_mode
    firsts = [open_evaluation(folder, mode) for folder in evaluation_folders(a, mode)]
    if b is None:
        if len(firsts) == 1:
            raise SettingError(
                f"b is missing; give what to compare {firsts[0].run_dir} with: {EVALUATION.offer()}"
            )
        return [(firsts[0], other) for other in firsts[1:]]
    seconds = [open_evaluation(folder, mode) for folder in evaluation_folders(b, mode)]
    count = max(len(firsts), len(seconds))
    if not {len(firsts), len(seconds)} <= {1, count}:
        raise SettingError(
            f"a holds {len(firsts)} evaluations and b {len(seconds)}, so that it is not clear which belong "
            "together; give as many, or a single one of them"
        )
    firsts, seconds = (one * count if len(one) == 1 else one for one in (firsts, seconds))
    return list(zip(firsts, seconds, strict=True))


def comparison_of(a: Evaluation, b: Evaluation) -> dict[str, Any]:
    """Compare two evaluations, print what comes out, and return it JSON-ready.

    Raises:
        ValueError: they have no episode in common, or not the same scenes.
    """
    require_same_scenes(a, b)
    comparison = compare(a.rows, b.rows)
    names = [cli.short_path(str(one.run_dir)) for one in (a, b)]
    for key, name, one in zip("ab", names, (a, b), strict=True):
        print(f"{key}: {name}, policy {one.policy_id[:12]}, {len(one.rows)} episodes")
    name_a, name_b = names
    print(format_comparison(comparison, name_a=name_a, name_b=name_b))
    return {
        "a": {"path": name_a, "policy_id": a.policy_id},
        "b": {"path": name_b, "policy_id": b.policy_id},
        "verdict": comparison.verdict(name_a, name_b),
        **dataclasses.asdict(comparison),
    }


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="compare")
def main(config: DictConfig) -> None:
    """Compare."""
    run = schema.typed(config, schema.CompareRun)
    schema.require_inputs(run)
    pairs = pairs_of(Path(run.a), None if run.b is None else Path(run.b), run.instruction_mode)
    found = [comparison_of(a, b) for a, b in pairs]
    path = Path(HydraConfig.get().runtime.output_dir) / "comparison.json"
    atomic_write_json(path, {"comparisons": found})
    print(f"written to {path}")


if __name__ == "__main__":
    cli.run(main)
