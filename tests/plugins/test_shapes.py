"""A plug-in that makes arrays of another shape than it announces is refused before anything is trained."""

from pathlib import Path

import numpy as np
import pytest

from envs.registry import ENVIRONMENTS, probe_env
from vla.interface import ArraySpec, DecodeError
from vla.processing.continuous import ContinuousCodec
from vla.processing.moments import Demonstrations
from vla.processing.processor import Processor
from vla.processing.registry import CODECS
from vla.spec import CameraSpec, Channel, RobotSpec

TOYS = Path(__file__).parents[1] / "experiments"
SPEC = RobotSpec(
    name="toy",
    cameras=(CameraSpec(name="top", height=16, width=16),),
    state=(Channel(name="x", unit="m", low=-1.0, high=1.0),),
    action=(Channel(name="dx", unit="m", low=-0.1, high=0.1),),
    control_hz=20.0,
    action_convention="end_effector_delta",
    gripper_sign="none",
)


class FlatCodec(ContinuousCodec):
    """Announces chunks, but encodes them flat."""

    def encode(self, actions, valid):
        return {name: array[:, :, 0] for name, array in super().encode(actions, valid).items()}


class OtherNameCodec(ContinuousCodec):
    """Announces another array than it makes."""

    def specs(self):
        return {"latent": ArraySpec("float32", (4, 1))}


class ShortCodec(ContinuousCodec):
    """Decodes one action too few."""

    def decode(self, outputs):
        return super().decode(outputs)[:, :-1]


def fit(kind, monkeypatch):
    monkeypatch.setattr(CODECS, "_entries", CODECS.entries() | {"bad": f"{__name__}:{kind.__name__}"})
    actions = np.linspace(-0.1, 0.1, 20, dtype=np.float32)[:, None]
    demonstrations = Demonstrations(
        robot_spec=SPEC,
        states=10 * actions,
        actions=actions,
        chunks=actions.reshape(5, 4, 1),
        instructions=["go on"],
    )
    return Processor.fit(demonstrations, codec={"kind": "bad"})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (FlatCodec, r"FlatCodec makes 'actions' as float32\[2, 4\], but .* say float32\[2, 4, 1\]"),
        (OtherNameCodec, r"OtherNameCodec makes \['actions'\], but its specs\(\) name \['latent'\]"),
    ],
)
def test_a_codec_that_encodes_otherwise_than_it_says_is_refused(kind, message, monkeypatch):
    with pytest.raises(ValueError, match=message):
        fit(kind, monkeypatch)


def test_a_codec_that_decodes_another_shape_is_refused(monkeypatch):
    with pytest.raises(
        DecodeError, match=r"ShortCodec.decode returns float32\[2, 3, 1\]; float32\[batch, 4, 1\]"
    ):
        fit(ShortCodec, monkeypatch)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "render_camera",
            r"render_camera\('top'\) returns uint8\[8, 8, 3\]; its robot spec says uint8\[16, 16, 3\]",
        ),
        ("read_state", r"read_state\(\) returns float32\[2\]; its robot spec says float32\[1\]"),
        ("expert_action", r"expert_action\(\) returns float32\[2\]; its robot spec says float32\[1\]"),
    ],
)
def test_an_environment_that_shows_otherwise_than_it_says_is_refused(method, message, monkeypatch):
    monkeypatch.syspath_prepend(str(TOYS))
    monkeypatch.setattr(ENVIRONMENTS, "_entries", ENVIRONMENTS.entries() | {"toy": "toy_env:ToyEnv"})
    wrong = np.zeros((8, 8, 3), np.uint8) if method == "render_camera" else np.zeros(2, np.float32)
    monkeypatch.setattr(ENVIRONMENTS.get("toy"), method, lambda *_: wrong)
    with pytest.raises(ValueError, match=f"toy_env.ToyEnv.{message}"):
        probe_env({"go_right": {"family": "toy", "task": "go_right"}})
