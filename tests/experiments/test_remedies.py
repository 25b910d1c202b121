"""Every remedy that an error of training names works: the error is provoked as a user would, then cured."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from program_fixtures import composed

from envs.tabletop.env import make_robot_spec
from experiments.train import train_policy
from vla.data.writer import DatasetWriter
from vla.errors import VLAError
from vla.spec import CameraSpec, Channel, RobotSpec
from vla.training.settings import NonFiniteLossError

SPEC = RobotSpec(
    name="mine",
    cameras=(
        CameraSpec(name="exterior", height=32, width=32),
        CameraSpec(name="wrist", height=32, width=32),
    ),
    state=(Channel(name="x", unit="m", low=-1.0, high=1.0), Channel(name="g", unit="1", low=0.0, high=1.0)),
    action=(Channel(name="x", unit="m", low=-0.1, high=0.1), Channel(name="g", unit="1", low=0.0, high=1.0)),
    control_hz=20.0,
    action_convention="end_effector_delta",
    gripper_sign="positive_opens",
)
TINY = (
    "processor.action_horizon=3",
    "model.backbone.width=32",
    "model.backbone.depth=1",
    "model.backbone.num_heads=2",
    "model.backbone.stem_channels=[8,8]",
    "model.backbone.patch_size=16",
    "trainer.batch_size=4",
    "trainer.num_samples=16",
    "trainer.num_threads=1",
    "trainer.precision=fp32",
    "data.validation_share=0.3",
)
NO_EVALUATION = "evaluation.instruction_modes=[]"
TEN_WORDS = "lift it over the fence with left arm and wait"


def record(root: Path, instructions=("lift it", "push it", "lift it", "push it"), spec=SPEC, still=False):
    """Record an episode for each instruction, as if in simulation with the seeds 0, 1, 2, ..."""
    rng = np.random.default_rng(0)
    with DatasetWriter(
        root, robot_spec=spec, storage="image", extra_info={"env": {"family": "tabletop"}}
    ) as writer:
        for seed, instruction in enumerate(instructions):
            for _ in range(6):
                images = {
                    camera.name: rng.integers(0, 255, (camera.height, camera.width, 3), dtype=np.uint8)
                    for camera in spec.cameras
                }
                state, action = (
                    np.array([rng.uniform(channel.low, channel.high) for channel in channels], np.float32)
                    for channels in (spec.state, spec.action)
                )
                if still:
                    state[1] = 0.5
                writer.add_frame(images, state, action)
            writer.save_episode(instruction, {"seed": seed, "task_name": "reach"})


def uneven() -> RobotSpec:
    return dataclasses.replace(SPEC, cameras=(SPEC.cameras[0], CameraSpec(name="wrist", height=16, width=16)))


def tabletop(*cameras: str) -> RobotSpec:
    return make_robot_spec(image_size=96, cameras=cameras)


class Case(NamedTuple):
    """What goes wrong, the words of the error that name a remedy, and that remedy."""

    provoke: tuple[str, ...]
    message: str
    remedy: tuple[str, ...]
    before: tuple[str, ...] | None = None  # of a run in the same directory that ended well
    recording: Callable[[Path], None] = record
    error: type[Exception] = ValueError
    elsewhere: bool = False  # whether the remedy is another run directory


CASES = {
    "instructions with equal tokens": Case(
        (NO_EVALUATION,),
        r"processor\.inputs\.text\.same_tokens=allow",
        ("processor.inputs.text.same_tokens=allow", NO_EVALUATION),
        recording=lambda root: record(root, ("turn by - 90", "turn by 90")),
    ),
    "a channel that never moves": Case(
        (NO_EVALUATION,),
        r"channel 'g' has zero width.*processor\.inputs\.state\.constant_dims",
        ("processor.inputs.state.constant_dims=[g]", NO_EVALUATION),
        recording=lambda root: record(root, still=True),
    ),
    "a long instruction": Case(
        ("processor.inputs.text.max_tokens=6", NO_EVALUATION),
        r"processor\.inputs\.text\.max_tokens\)\. Shorten it or train with a larger one",
        ("processor.inputs.text.max_tokens=20", NO_EVALUATION),
        recording=lambda root: record(root, (TEN_WORDS, TEN_WORDS)),
    ),
    "a task that was not recorded": Case(
        ("data.tasks=[raech]", NO_EVALUATION),
        r"did you mean 'reach'\?",
        ("data.tasks=[reach]", NO_EVALUATION),
    ),
    "cameras of several sizes, resized": Case(
        (NO_EVALUATION,),
        r"data\.image_size=96",
        ("data.image_size=32", NO_EVALUATION),
        recording=lambda root: record(root, spec=uneven()),
    ),
    "cameras of several sizes, one of them": Case(
        (NO_EVALUATION,),
        r"cameras of one size with data\.cameras",
        ("data.cameras=[wrist]", NO_EVALUATION),
        recording=lambda root: record(root, spec=uneven()),
    ),
    "cameras that the evaluation does not show": Case(
        (),
        r"data\.cameras and env\.cameras, or skip the evaluation with evaluation\.instruction_modes=\[\]",
        ("env.cameras=[exterior]",),
        recording=lambda root: record(root, spec=tabletop("exterior")),
    ),
    "the same, without an evaluation": Case(
        (),
        r"evaluation\.instruction_modes=\[\]",
        (NO_EVALUATION,),
        recording=lambda r: record(r, spec=tabletop("exterior")),
    ),
    "an evaluation on recorded seeds": Case(
        ("tasks=[reach]", "evaluation.first_seed=2"),
        r"evaluation\.first_seed=4 or more",
        ("tasks=[reach]", "evaluation.first_seed=4"),
        recording=lambda root: record(root, spec=tabletop("exterior", "wrist")),
    ),
    "a head without its codec": Case(
        ("model/head=flow", NO_EVALUATION),
        r"choose codec=continuous",
        ("model/head=flow", "codec=continuous", NO_EVALUATION),
    ),
    "too few ids": Case(
        ("model/head=fast", "codec=fast", "codec.vocab_size=2", NO_EVALUATION),
        r"it must lie in \[\d+, 8192\]",
        ("model/head=fast", "codec=fast", "codec.vocab_size=8000", NO_EVALUATION),
    ),
    "fewer samples than a step takes": Case(
        ("trainer.num_samples=3", NO_EVALUATION),
        r"trainer\.batch_size x trainer\.accumulate\); raise the one or lower the other",
        ("trainer.num_samples=3", "trainer.batch_size=3", NO_EVALUATION),
    ),
    "no checkpoint kept": Case(
        ("trainer.keep_checkpoints=0", NO_EVALUATION),
        r"-1 to keep all",
        ("trainer.keep_checkpoints=-1", NO_EVALUATION),
    ),
    "another learning rate on resuming": Case(
        ("trainer.learning_rate=0.01", "trainer.num_samples=32", NO_EVALUATION),
        r"trainer\.resume=override",
        ("trainer.learning_rate=0.01", "trainer.num_samples=32", "trainer.resume=override", NO_EVALUATION),
        before=(NO_EVALUATION,),
    ),
    "another optimizer on resuming": Case(
        ("trainer.optimizer=adamw", "trainer.num_samples=32", NO_EVALUATION),
        r"trainer\.resume=override",
        ("trainer.optimizer=adamw", "trainer.num_samples=32", "trainer.resume=override", NO_EVALUATION),
        before=("trainer.optimizer=muon", NO_EVALUATION),
    ),
    "another codec on resuming": Case(
        ("codec=quantile", NO_EVALUATION),
        r"train in a new run directory",
        ("codec=quantile", NO_EVALUATION),
        before=(NO_EVALUATION,),
        elsewhere=True,
    ),
    "a budget that is spent": Case(
        ("trainer.num_samples=8", NO_EVALUATION),
        r"raise it, or train in a new run directory",
        ("trainer.num_samples=20", NO_EVALUATION),
        before=(NO_EVALUATION,),
    ),
    "minutes that are spent": Case(
        ("trainer.num_samples=32", "trainer.max_minutes=1e-9", NO_EVALUATION),
        r"trainer\.max_minutes=null",
        ("trainer.num_samples=32", "trainer.max_minutes=null", NO_EVALUATION),
        before=(NO_EVALUATION,),
    ),
    "a loss that diverges": Case(
        ("trainer.learning_rate=100", "trainer.max_grad_norm=1e9", "trainer.num_samples=64", NO_EVALUATION),
        r"lower trainer\.learning_rate or trainer\.max_grad_norm and trainer\.resume=override",
        ("trainer.learning_rate=1e-4", "trainer.num_samples=64", "trainer.resume=override", NO_EVALUATION),
        error=NonFiniteLossError,
    ),
    "a GPU that is not there": Case(
        ("trainer.device=cuda", NO_EVALUATION),
        r"use trainer\.device=cpu or auto",
        ("trainer.device=cpu", NO_EVALUATION),
    ),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CASES)
def test_the_remedy_works(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    case.recording(tmp_path / "dataset")

    def train(overrides: tuple[str, ...], run_dir: str):
        paths = (f"dataset={tmp_path / 'dataset'}", f"data.cache_dir={tmp_path / 'cache'}")
        return train_policy(composed("train", *TINY, *paths, *overrides), tmp_path / run_dir)

    if case.before is not None:
        train(case.before, "run")
    with pytest.raises((case.error, VLAError), match=case.message):
        train(case.provoke, "run")
    assert train(case.remedy, "elsewhere" if case.elsewhere else "run").end == "finished"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("instructions", [("lift it",), ("lift it", "push it")])
@pytest.mark.parametrize("share", ["0.0", "0.3"])
def test_what_cannot_be_split_is_trained_on(tmp_path: Path, instructions, share: str, capsys) -> None:
    record(tmp_path / "dataset", instructions[:1] if share != "0.0" else instructions)
    paths = (f"dataset={tmp_path / 'dataset'}", f"data.cache_dir={tmp_path / 'cache'}")
    run = composed("train", *TINY, *paths, NO_EVALUATION, f"data.validation_share={share}")
    assert train_policy(run, tmp_path / "run").metrics == {}
    printed = capsys.readouterr()
    assert "held out: none" in printed.out
    assert "no episode is held out" in printed.err
