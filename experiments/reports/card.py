"""The card of a pretrained policy: data, recipe, command, seeds, results, limits, hash, license.

`card.json` has it for programs, and its README.md for people.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.evaluation.results import Evaluation
from envs.evaluation.statistics import Interval
from experiments.config.trained_setting import SETTING, setting_in
from experiments.recorded_seeds import KEY as RECORDED_SEEDS
from experiments.reports.tables import markdown_table
from experiments.resumed_run import BEGUN, SAMPLES
from vla.files import DamagedFile, atomic_write_text, read_json_object

CARD_NAME = "card.json"
LICENSE = "Apache-2.0"
DEVELOPMENT_SEEDS = range(500_000, 900_000)  # conf/evaluation/development.yaml
FEWEST_EPISODES = 20  # of an evaluation on development seeds, which the tests repeat


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What an evaluation found.

    Attributes:
        instruction_mode: which instruction the policy was given.
        is_released: whether it was the policy in half precision; else the checkpoint that it was made of.
        env: configuration of the environment, the task apart.
        tasks: successes of each task, each of `episodes_per_task`.
        episodes_per_task: with seeds that follow one another.
        first_seed: of each task.
        execute_horizon: control periods from one inference to the next.
        road: what the actions passed on their way to the arm.
        success_rate: mean over tasks.
        interval: Wilson 95 % interval of all episodes pooled.
    """

    instruction_mode: str
    is_released: bool
    env: Mapping[str, Any]
    tasks: Mapping[str, int]
    episodes_per_task: int
    first_seed: int
    execute_horizon: int
    road: str
    success_rate: float
    interval: Interval

    @property
    def episodes(self) -> int:
        """How many there were in all."""
        return len(self.tasks) * self.episodes_per_task

    @property
    def last_seed(self) -> int:
        """Of each task."""
        return self.first_seed + self.episodes_per_task - 1

    @property
    def scenes(self) -> tuple[Any, ...]:
        """By what evaluations are of the same: instruction, environment, seeds, how actions were executed."""
        env = tuple(sorted((key, str(one)) for key, one in self.env.items()))
        seeds = (tuple(self.tasks), self.first_seed, self.episodes_per_task)
        return (self.instruction_mode, self.is_released, env, seeds, self.execute_horizon, self.road)

    @property
    def is_development(self) -> bool:
        """Whether tests repeat it: the released weights on development seeds, with enough episodes."""
        is_plain = self.instruction_mode == "original" and self.road.startswith("simulation")
        are_ours = self.first_seed in DEVELOPMENT_SEEDS and self.last_seed in DEVELOPMENT_SEEDS
        return self.is_released and is_plain and are_ours and self.episodes >= FEWEST_EPISODES


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What is known of a pretrained policy.

    Attributes:
        name: of the policy.
        weights_id: sha256 of its weights file.
        num_parameters: of the model.
        license: of the weights.
        command: that trained it.
        data: what it was trained on, a sentence each.
        recipe: how, a sentence each.
        limits: what it cannot do, a sentence each.
        results: of its evaluations.
    """

    name: str
    weights_id: str
    num_parameters: int
    license: str
    command: str
    data: Sequence[str]
    recipe: Sequence[str]
    limits: Sequence[str]
    results: Sequence[Result]

    @property
    def development(self) -> Result | None:
        """The evaluation that tests repeat, if there is one."""
        return next((one for one in self.results if one.is_development), None)

    def results_with(self, further: Sequence[Result]) -> list[Result]:
        """Return the results and further ones, which count in place of those of the same scenes."""
        return list({one.scenes: one for one in (*self.results, *further)}.values())

    def shortfall(self) -> str | None:
        """Return a sentence on what the card lacks, or None if it is complete."""
        lacking = [key for key in ("command", "data", "recipe", "limits") if not getattr(self, key)]
        if not self.results:
            lacking.append("results: give evaluations=[...], measured with path=pretrained/" + self.name)
        elif self.development is None:
            lacking.append(
                f"an evaluation of the released weights on development seeds (evaluation.first_seed=500000), "
                f"{FEWEST_EPISODES} episodes or more"
            )
        return f"the card lacks {'; '.join(lacking)}" if lacking else None

    def to_json(self) -> dict[str, Any]:
        """Return what `card.json` holds."""
        return dataclasses.asdict(self)


def read_card(directory: Path) -> Card:
    """Return the card of a pretrained policy.

    Raises:
        FileNotFoundError: it has none.
        DamagedFile: it has another form.
    """
    stored = read_json_object(directory / CARD_NAME)
    try:
        results = [
            Result(**{**one, "interval": Interval(**one["interval"])}) for one in stored.pop("results")
        ]
        return Card(**stored, results=results)
    except (TypeError, KeyError) as error:
        raise DamagedFile(
            f"{directory / CARD_NAME} is no card ({error}); restore it from a copy, or write it again with "
            "experiments.release"
        ) from error


def result_of(evaluation: Evaluation, *, is_released: bool) -> Result:
    """Return what a card keeps of an evaluation.

    Args:
        evaluation: a finished one.
        is_released: whether it is of the weights in half precision.
    """
    plan = evaluation.plan
    config = next(iter(plan.env_configs.values()))
    return Result(
        instruction_mode=plan.instruction_mode,
        is_released=is_released,
        env={key: value for key, value in config.items() if key != "task"},
        tasks={task: one.successes for task, one in evaluation.tasks.items()},
        episodes_per_task=plan.episodes_per_task,
        first_seed=plan.first_seed,
        execute_horizon=plan.execute_horizon,
        road=plan.road,
        success_rate=evaluation.mean_success_rate,
        interval=evaluation.pooled_interval,
    )


def card_of(
    *,
    name: str,
    weights_id: str,
    num_parameters: int,
    provenance: Mapping[str, Any],
    state: Mapping[str, Any],
    results: Sequence[Result],
    limits: Sequence[str],
) -> Card:
    """Return the card that provenance and evaluations make.

    Args:
        name: of the policy.
        weights_id: sha256 of its weights file.
        num_parameters: of the model.
        provenance: of the checkpoint, without places of this machine.
        state: of the checkpoint.
        results: of its evaluations.
        limits: sentences to add to those that hold for every policy.
    """
    setting = setting_in(provenance, source=Path(name))
    env = provenance.get("config", {}).get("env", {}) if setting is None else setting.env
    known = [
        f"Simulation only ({env.get('family', 'unknown')}): it has driven no real arm.",
        "It knows the words of the instructions that it was trained with, not English.",
        *([f"It was trained with env.level={env['level']} alone."] if "level" in env else []),
    ]
    return Card(
        name=name,
        weights_id=weights_id,
        num_parameters=num_parameters,
        license=LICENSE,
        command=provenance.get("command", ""),
        data=_data(provenance),
        recipe=_recipe(provenance, state),
        limits=[*known, *(one for one in limits if one not in known)],
        results=results,
    )


def _data(provenance: Mapping[str, Any]) -> list[str]:
    """Return sentences on the demonstrations."""
    config, sentences = provenance.get("config", {}), []
    if SETTING in provenance:
        setting = setting_in(provenance, source=Path())
        assert setting is not None, "it is kept"
        sentences.append(setting.sentence())
    elif "env" in config:
        shown = ", ".join(f"{key} {value}" for key, value in config["env"].items())
        sentences.append(f"trained in {shown}, tasks {', '.join(config.get('tasks', ()))}")
    if "collect" in config:
        sentences.append(f"demonstrations of the scripted expert: {_flat(config['collect'])}")
    if "corrections" in config:
        corrections = config["corrections"]
        itself = corrections.get("teacher") == "itself"
        rollouts = "successes of its own" if itself else "its own rollouts, corrected by the expert"
        sentences.append(f"and {rollouts}: {_flat(corrections)}")
    sentences += [
        f"seeds of {family}: " + "; ".join(f"{', '.join(tasks)}: {rows}" for rows, tasks in by_rows.items())
        for family, by_rows in _by_seeds(provenance.get(RECORDED_SEEDS, {})).items()
    ]
    episodes = provenance.get("episodes")
    if episodes:
        sentences.append(
            f"{len(episodes['trained'])} distinct episodes trained on, {len(episodes['held_out'])} held out"
        )
    return sentences


def _by_seeds(recorded: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Return for each family the tasks by their seeds in words."""
    found: dict[str, dict[str, list[str]]] = {}
    for family, tasks in recorded.items():
        for task, rows in tasks.items():
            words = ", ".join(f"{first} to {last}" for first, last in rows)
            found.setdefault(family, {}).setdefault(words, []).append(task)
    return found


def _recipe(provenance: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """Return sentences on how the policy was trained."""
    config, sentences = provenance.get("config", {}), []
    for key in ("model", "codec", "processor", "trainer"):
        if key in config:
            sentences.append(f"{key}: {_flat(config[key])}")
    if "seed" in config:
        sentences.append(f"seed of training: {config['seed']}")
    if state.get("num_samples") is not None and state.get("elapsed_s") is not None:
        minutes = state["elapsed_s"] / 60
        sentences.append(
            f"{state['num_samples']:,} samples in {state.get('step'):,} steps, {minutes:.0f} minutes"
        )
    if BEGUN in provenance:
        sentences.append(_begun(provenance[BEGUN]))
    if "versions" in provenance:
        sentences.append(_flat(provenance["versions"]))
    return sentences


def _begun(begun: Mapping[str, Any]) -> str:
    """Return a sentence on what training began with."""
    samples = begun.get(SAMPLES)
    told = f"{begun['step']:,} steps" if samples is None else f"{samples:,} samples"
    return f"before that, {told}: it began with {begun['given']} (sha256 {begun['checkpoint_id']})"


def _flat(values: Mapping[str, Any]) -> str:
    parts = []
    for key, value in values.items():
        if value is None:
            continue
        inside = f"({_flat(value)})" if isinstance(value, Mapping) else value
        parts.append(f"{key} {inside}")
    return ", ".join(parts)


def write_card(path: Path, card: Card) -> None:
    """Write the page of a card."""
    atomic_write_text(path, card_markdown(card))


def card_markdown(card: Card) -> str:
    """Return the page of a card."""
    short = f"pretrained/{card.name}"
    lacking = card.shortfall()
    played = any(one.env.get("family") == "tabletop" for one in card.results)
    return "\n".join(
        [
            f"# {card.name}\n",
            f"A pretrained policy with {card.num_parameters:,} weights in bf16. Give `{short}` wherever a "
            "program takes the path of a checkpoint:\n",
            "```bash",
            *([f"python -m experiments.demo path={short}"] if played else []),
            _evaluate_command(card),
            f"python -m experiments.export checkpoint={short} bundle=outputs/{card.name}_bundle",
            "```\n",
            *([f"Not complete: {lacking}.\n"] if lacking else []),
            "## Results\n",
            *_results(card),
            "## Data\n",
            *_items(card.data),
            "## Recipe\n",
            f"```bash\n{card.command}\n```\n",
            *_items(card.recipe),
            "## Limits\n",
            *_items(card.limits),
            "## Weights\n",
            f"sha256 of `model.safetensors`: `{card.weights_id}`\n",
            f"License: {card.license}.",
            "",
        ]
    )


def _evaluate_command(card: Card) -> str:
    """Return the command that measures the released weights as the first row of theirs says."""
    command = f"python -m experiments.evaluate path=pretrained/{card.name}"
    first = next((one for one in card.results if one.is_released), None)
    if first is None:
        return command
    return (
        f"{command} evaluation.first_seed={first.first_seed} evaluation.episodes_per_task="
        f"{first.episodes_per_task} evaluation.instruction_modes=[{first.instruction_mode}] "
        f"evaluation.execute_horizon={first.execute_horizon}"
    )


def _items(sentences: Sequence[str]) -> list[str]:
    return [*(f"- {one}" for one in sentences), ""]


def _results(card: Card) -> list[str]:
    """Return a table of all evaluations, and one of the tasks of each."""
    if not card.results:
        return ["Not measured yet.\n"]
    rows = [
        [
            one.instruction_mode,
            f"{len(one.tasks)} x {one.episodes_per_task}",
            f"{one.first_seed} to {one.last_seed}",
            ", ".join(f"{key} {one.env[key]}" for key in ("level", "wording") if key in one.env) or "-",
            str(one.execute_horizon),
            "bf16" if one.is_released else "before rounding",
            f"{100 * one.success_rate:.1f} % {one.interval.in_percent()}",
        ]
        for one in card.results
    ]
    header = ["instruction", "tasks x episodes", "seeds", "scene", "executed", "weights", "success"]
    tasks = list(dict.fromkeys(task for one in card.results for task in one.tasks))
    by_task = [
        [
            task,
            *(
                f"{one.tasks[task]} of {one.episodes_per_task}" if task in one.tasks else "-"
                for one in card.results
            ),
        ]
        for task in tasks
    ]
    columns = [
        f"{one.instruction_mode}, {one.first_seed}, {one.execute_horizon} executed" for one in card.results
    ]
    return [
        markdown_table(header, rows),
        "\nExecuted: actions of a chunk before the policy looks again (`evaluation.execute_horizon`). "
        "Brackets: Wilson 95 % intervals of all episodes pooled.\n",
        markdown_table(["successes by task", *columns], by_task),
        "",
    ]
