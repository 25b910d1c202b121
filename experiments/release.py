r"""Makes a pretrained policy of a checkpoint: weights in half precision and a card, small enough for git.

    python -m experiments.release checkpoint=outputs/train/tabletop name=tabletop
    python -m experiments.evaluate path=pretrained/tabletop out_dir=outputs/evaluate/released
    python -m experiments.release checkpoint=outputs/train/tabletop name=tabletop replace=true \
        evaluations=[outputs/evaluate/released]

What it writes to `policies/pretrained/<name>` is a checkpoint without what resuming needs: the averaged
weights in bf16, which are widened to fp32 when they are loaded. `card.json` has the results, and `README.md`,
which a person may edit, shows them. The same checkpoint gives the same weights each time, and so does the
pretrained policy itself: checkpoint=pretrained/tabletop with further evaluations adds them to its card.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

from envs.evaluation.results import PLAN, Evaluation, load_evaluation
from experiments.config import cli, schema
from experiments.config.releasing import ReleaseRun
from experiments.reports.card import CARD_NAME, Card, card_of, read_card, result_of, write_card
from policies.pretrained_names import require_pretrained
from vla.errors import VLAError
from vla.files import (
    atomic_write_json,
    publish_directory,
    sha256_file,
    staging_directory,
    write_manifest,
)
from vla.model.checkpoint import (
    GOLDEN_NAME,
    MODEL_NAME,
    PROCESSOR_NAME,
    STATE_NAME,
    WEIGHTS_NAME,
    load_checkpoint,
    read_state,
)
from vla.registry import SettingError
from vla.training.checkpoint import save_tensors

schema.register("release")

MOST_BYTES, MOST_BYTES_IN_ALL = 11_000_000, 40_000_000
README_NAME = "README.md"
MODES = ("original", "swapped", "blank")  # in which order they are shown
_NAME = re.compile("[a-z0-9][a-z0-9_]*")
_PATH = re.compile(r"(?<![\w./~-])~?(?:/[^\s/,;:'\"\[\]{}()=]+){2,}/?")


class TooLarge(VLAError):
    """A policy is too large to be kept with the repository."""


class ForeignEvaluation(VLAError):
    """An evaluation is of another policy, or not finished."""


def without_places(value: Any) -> Any:
    """Return JSON-ready data without places of this machine: of an absolute path its last part is left.

    >>> without_places({"command": "train dataset=/mnt/disk/mine tasks=[reach]"})
    {'command': 'train dataset=.../mine tasks=[reach]'}
    """
    if isinstance(value, str):
        return _PATH.sub(lambda found: f".../{Path(found[0]).name}", value)
    if isinstance(value, Mapping):
        return {key: without_places(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(inside) for inside in value]
    return value


def read_evaluations(directories: Sequence[str], *, policy_ids: Sequence[str]) -> list[Evaluation]:
    """Return the evaluations in directories of `experiments.evaluate`, those of all instruction modes.

    Args:
        directories: each of one evaluation, or with one in each folder.
        policy_ids: of the policy that they have to be of.

    Raises:
        FileNotFoundError: a directory holds none.
        ForeignEvaluation: one is of another policy, or not finished.
    """
    found = []
    for directory in map(Path, directories):
        plans = [directory / PLAN] if (directory / PLAN).is_file() else sorted(directory.glob(f"*/{PLAN}"))
        if not plans:
            raise FileNotFoundError(f"evaluations names {directory}, which holds no evaluation: no {PLAN}")
        found += [load_evaluation(plan.parent) for plan in plans]
    for one in found:
        if one.policy_id not in policy_ids:
            raise ForeignEvaluation(
                f"{one.run_dir} is an evaluation of the policy {one.policy_id[:12]}, not of "
                f"{policy_ids[0][:12]} or its weights in half precision, {policy_ids[-1][:12]}; leave it out "
                "of evaluations"
            )
        if not one.is_complete:
            raise ForeignEvaluation(
                f"{one.run_dir} is not finished; finish it with the same command, or leave it out"
            )
    return sorted(found, key=lambda one: MODES.index(one.plan.instruction_mode))


def write_policy(staging: Path, run: ReleaseRun) -> Card:
    """Fill an empty directory with the policy, and return its card.

    Raises:
        CheckpointError, ManifestError: there is no usable checkpoint.
        FileNotFoundError, ForeignEvaluation: as `read_evaluations`.
    """
    require_pretrained(Path(run.checkpoint))
    loaded = load_checkpoint(Path(run.checkpoint))
    half = {name: one.detach().to(torch.bfloat16) for name, one in loaded.model.named_parameters()}
    save_tensors(half, staging / WEIGHTS_NAME)
    for name in (MODEL_NAME, PROCESSOR_NAME, GOLDEN_NAME):
        shutil.copyfile(loaded.path / name, staging / name)
    shutil.copymode(staging / MODEL_NAME, staging / WEIGHTS_NAME)  # its own is for the owner alone
    state = read_state(loaded.path)
    atomic_write_json(
        staging / STATE_NAME, {key: state.get(key) for key in ("step", "num_samples", "elapsed_s")}
    )
    weights_id = sha256_file(staging / WEIGHTS_NAME)
    evaluations = read_evaluations(run.evaluations, policy_ids=(loaded.checkpoint_id, weights_id))
    measured = [result_of(one, is_released=one.policy_id == weights_id) for one in evaluations]
    told = read_card(loaded.path) if (loaded.path / CARD_NAME).is_file() else None  # of a release, still true
    provenance = without_places(loaded.provenance)
    card = card_of(
        name=run.name,
        weights_id=weights_id,
        num_parameters=sum(one.numel() for one in half.values()),
        provenance=provenance,
        state=state,
        results=measured if told is None else told.results_with(measured),
        limits=run.limits if told is None else [*told.limits, *run.limits],
    )
    atomic_write_json(staging / CARD_NAME, without_places(card.to_json()))
    write_manifest(staging, {"released_from": loaded.checkpoint_id, **provenance})  # of a release its own
    return card


def require_small(staging: Path, *, name: str, folder: Path) -> None:
    """Check the size of a policy, and that of all with it.

    Raises:
        TooLarge: it is above what the repository keeps; the message lists the files.
    """
    sizes = {path.name: path.stat().st_size for path in staging.iterdir()}
    mine = sum(sizes.values())
    others = sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in (name, staging.name)
    )
    if mine > MOST_BYTES:
        listing = ", ".join(f"{one} {size / 1e6:.1f}" for one, size in sizes.items() if size > 10**5)
        raise TooLarge(
            f"{name} has {mine / 1e6:.1f} MB ({listing}); at most {MOST_BYTES / 1e6:g} are kept with the "
            "repository. Train a smaller model, such as model=vla_tiny; nothing was written"
        )
    if mine + others > MOST_BYTES_IN_ALL:
        raise TooLarge(
            f"{name} has {mine / 1e6:.1f} MB and the others in {folder} {others / 1e6:.1f}; all together may "
            f"have {MOST_BYTES_IN_ALL / 1e6:g}. Remove one of them; nothing was written"
        )


def release(run: ReleaseRun) -> Card:
    """Write the pretrained policy whole, or nothing, and return its card.

    Raises:
        FileExistsError: there is one of that name, and `replace` is false.
        TooLarge: it has more than 11 MB, or all together more than 40 MB.
        CheckpointError, ManifestError: there is no usable checkpoint.
        ForeignEvaluation: an evaluation is of another policy, or not finished.
    """
    final = Path(run.folder) / run.name
    if final.exists() and not run.replace:
        raise FileExistsError(f"{final} exists; give replace=true, or another name")
    with staging_directory(final) as staging:
        card = write_policy(staging, run)
        write_card(staging / README_NAME, card)
        require_small(staging, name=run.name, folder=Path(run.folder))
        publish_directory(staging, final, replace=run.replace)
    return card


def require_name(name: str) -> None:
    """Check that a name can be typed everywhere.

    Raises:
        SettingError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise SettingError(f"name is {name!r}; it may have small letters, digits and _, as in tabletop")


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="release")
def main(config: DictConfig) -> None:
    """Release."""
    run = schema.typed(config, ReleaseRun)
    require_name(run.name)
    card = release(run)
    place = Path(run.folder) / run.name
    size = sum(path.stat().st_size for path in place.iterdir()) / 1e6
    print(f"{cli.short_path(str(place))}: {card.num_parameters:,} weights, {size:.1f} MB, {card.weights_id}")
    print(card.shortfall() or "the card is complete")


if __name__ == "__main__":
    cli.run(main)
