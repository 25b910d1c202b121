"""Parts of a model that are no part of the package: what a user writes, each with one line that adds it."""

from typing import Annotated

import numpy as np
import torch
from torch import nn

from vla.data.registry import SOURCES
from vla.interface import PAD_ID, ArraySpec, DecodeError, Moments, Observation
from vla.model.interface import AuxiliaryTarget, Backbone, Embedder, Head, Prefix, Tokens, require_targets
from vla.model.registry import AUXILIARIES, BACKBONES, EMBEDDERS, HEADS
from vla.processing.moments import Demonstrations
from vla.processing.registry import CODECS, INPUTS
from vla.registry import Range
from vla.spec import CameraSpec, Channel, RobotSpec

# A new action representation: one action for the whole chunk.
CODECS.add("toy_mean", "toy_parts:MeanCodec")
HEADS.add("toy_mean", "toy_parts:MeanHead")


class MeanCodec:
    def __init__(self, *, low, high, action_horizon):
        self.low, self.high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        self.action_horizon, self.action_dim = action_horizon, self.low.size

    @classmethod
    def fit(cls, actions, chunks, *, low, high):
        return cls(low=low, high=high, action_horizon=chunks.shape[1])

    def specs(self):
        return {"mean_action": ArraySpec("float32", (self.action_dim,))}

    def constants(self):
        return {}

    def encode(self, actions, valid):
        return {"mean_action": actions.mean(axis=1, dtype=np.float32)}

    def decode(self, outputs):
        mean = outputs["mean_action"]
        if not np.isfinite(mean).all():
            raise DecodeError("the mean action is not finite; hold the last command")
        chunk = np.clip(mean, self.low, self.high)[:, None]
        return np.repeat(chunk, self.action_horizon, axis=1).astype(np.float32)

    def committed_specs(self):
        return {"num_committed": ArraySpec("int64", ())}

    def encode_committed(self, actions, num_committed):
        return {"num_committed": num_committed}

    def to_json(self):
        return {
            "kind": "toy_mean",
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "action_horizon": self.action_horizon,
        }

    @classmethod
    def from_json(cls, data):
        return cls(low=data["low"], high=data["high"], action_horizon=data["action_horizon"])


class MeanHead(Head):
    learns = ("mean_action",)

    def __init__(self, *, specs, backbone, gain: Annotated[float, Range(0), "of the answer"] = 1.0):
        super().__init__()
        require_targets(specs, self.learns, head="toy_mean", codecs="toy_mean")
        self.gain, self.out = gain, nn.Linear(backbone.width, specs.targets["mean_action"].shape[0])

    def _mean(self, backbone, prefix):
        tokens, _ = backbone.extend(prefix.context, prefix, causal=False)
        return self.gain * self.out(tokens[:, 0].float())

    def loss(self, backbone, prefix, batch):
        return {"loss": (self._mean(backbone, prefix) - batch["mean_action"]).square().mean()}

    def sample(self, backbone, prefix, inputs):
        return {"mean_action": self._mean(backbone, prefix)}


# A new modality: how bright each picture is.
INPUTS.add("toy_brightness", "toy_parts:BrightnessInput")
EMBEDDERS.add("toy_brightness", "toy_parts:BrightnessEmbedder")


class BrightnessInput:
    def __init__(self, *, num_cameras):
        self.num_cameras = num_cameras

    @classmethod
    def fit(cls, demonstrations, *, frame_offsets):
        return cls(num_cameras=len(demonstrations.robot_spec.cameras))

    def specs(self):
        return {"brightness": ArraySpec("float32", (self.num_cameras,))}

    def encode(self, moments):
        newest = [frames[:, -1] for frames in moments.images.values()]
        return {
            "brightness": np.stack([f.mean(axis=(1, 2, 3)) / 255 for f in newest], axis=1).astype(np.float32)
        }

    def to_json(self):
        return {"kind": "toy_brightness"}

    @classmethod
    def from_json(cls, data, *, robot_spec, frame_offsets):
        return cls(num_cameras=len(robot_spec.cameras))


class BrightnessEmbedder(Embedder):
    reads = ("brightness",)

    def __init__(self, *, specs, width):
        super().__init__()
        self.out = nn.Linear(1, width)

    def forward(self, inputs):
        values = self.out(inputs["brightness"][..., None])
        return Tokens(values, torch.ones_like(values[..., 0], dtype=torch.bool))


# A new backbone: one token of everything, which a suffix is added to.
BACKBONES.add("toy_flat", "toy_parts:FlatBackbone")


class FlatBackbone(Backbone):
    reads = ("images", "text_ids", "state")
    depth, num_heads = 1, 1

    def __init__(self, *, specs, width: Annotated[int, Range(1), "of a token"] = 8):
        super().__init__()
        self.width = width
        self.table = nn.Embedding(specs.inputs["text_ids"].num_ids, width, padding_idx=PAD_ID)
        self.state = nn.Linear(specs.inputs["state"].shape[0] + 1, width)

    def prefill(self, inputs):
        brightness = inputs["images"].float().mean(dim=(1, 2, 3, 4))[:, None] / 255
        both = torch.cat((inputs["state"], brightness), dim=1)
        token = (self.state(both) + self.table(inputs["text_ids"]).sum(dim=1))[:, None]
        keys = token[:, None]
        return Prefix(
            cache=[(keys, keys)], valid=torch.ones_like(token[..., 0], dtype=torch.bool), context=token
        )

    def extend(self, values, prefix, *, valid=None, causal):
        return torch.tanh(values + prefix.context), prefix

    def embed_actions(self, ids):
        raise NotImplementedError("this backbone has no table of actions")

    def reset_token_embedding(self):
        nn.init.normal_(self.table.weight, std=0.02)


# A new training source, without any recording, and an auxiliary target that it has.
SOURCES.add("toy_points", "toy_parts:PointSource")
AUXILIARIES.add("toy_distance", "toy_parts:DistanceTarget")
SPEC = RobotSpec(
    name="toy",
    cameras=(CameraSpec(name="top", height=16, width=16),),
    state=(Channel(name="x", unit="m", low=-1.0, high=1.0),),
    action=(Channel(name="dx", unit="m", low=-0.1, high=0.1),),
    control_hz=20.0,
    action_convention="end_effector_delta",
    gripper_sign="positive_opens",
)


class PointSource:
    def __init__(self, *, horizon, first, count):
        self.horizon, self.xs = horizon, np.random.default_rng(first).uniform(-1, 1, count).astype(np.float32)
        self.num_samples, self.groups = count, np.zeros(count, np.int64)

    @classmethod
    def open(
        cls,
        *,
        dataset,
        action_horizon,
        frame_offsets,
        robot_spec,
        count: Annotated[int, Range(1), "of points"] = 40,
    ):
        return (
            cls(horizon=action_horizon, first=0, count=count),
            cls(horizon=action_horizon, first=1, count=20),
        )

    def describe(self):
        return f"{self.num_samples} points"

    def to_json(self):
        return {}

    def fingerprints(self):
        return []

    def _chunks(self, indices):
        step = -0.1 * np.sign(self.xs[indices])
        return np.repeat(step[:, None, None], self.horizon, axis=1).astype(np.float32)

    def demonstrations(self):
        everything = np.arange(self.num_samples)
        chunks = self._chunks(everything)
        return Demonstrations(
            robot_spec=SPEC,
            states=self.xs[:, None],
            actions=chunks[:, 0],
            chunks=chunks,
            instructions=["go to zero"],
        )

    def _images(self, indices):
        gray = (100 * (self.xs[indices] + 1)).astype(np.uint8)
        return {"top": np.broadcast_to(gray[:, None, None, None, None], (len(indices), 1, 16, 16, 3)).copy()}

    def batch(self, indices, *, processor, requests, seed):
        actions, valid = self._chunks(indices), np.ones((len(indices), self.horizon), bool)
        moments = Moments(
            images=self._images(indices),
            state=self.xs[indices, None],
            instructions=["go to zero"] * len(indices),
            committed=actions,
            num_committed=np.zeros(len(indices), np.int64),
        )
        known = {"distance": np.abs(self.xs[indices, None])}
        return {
            **processor.encode(moments),
            **processor.codec.encode(actions, valid),
            "valid": valid,
            **{name: known[name] for name in requests},
        }

    def observations(self, indices):
        images = self._images(indices)["top"]
        return [
            Observation(
                images={"top": images[i]},
                state=self.xs[index : index + 1],
                instruction="go to zero",
                committed=np.zeros((0, 1), np.float32),
                stamp=0.0,
            )
            for i, index in enumerate(indices)
        ]


class DistanceTarget(AuxiliaryTarget):
    learns, weight = ("distance",), 0.5

    def __init__(self, *, specs, backbone):
        super().__init__()
        self.out = nn.Linear(backbone.width, 1)

    def loss(self, prefix, batch):
        return (self.out(prefix.context[:, 0].float()) - batch["distance"]).square().mean()
