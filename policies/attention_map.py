"""Where a torch policy looks: the attention weights of one prediction, as arrays and as a picture."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from policies.vla_policy import VLAPolicy
from vla.interface import Observation
from vla.model.attention import record_attention
from vla.model.backbone import SceneBackbone

_ENLARGED = 4  # pixels a side of the picture for each pixel of a frame
_DARKEST = 0.15  # brightness of the patch that gets the least attention


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionMap:
    """The attention of one prediction.

    Attributes:
        weights: name of the module and [heads queries keys], in the order in which they ran. Keys are the
            tokens of all image patches, of the words, of the context, then those of the actions.
        patches: by camera [frames rows columns], oldest frame first: the share of the action tokens'
            attention that falls on each patch, mean over blocks, heads and action tokens.
        frames: by camera, the newest frame as the model saw it.
    """

    weights: list[tuple[str, Float32[np.ndarray, "_ _ _"]]]
    patches: dict[str, Float32[np.ndarray, "frames rows columns"]]
    frames: dict[str, UInt8[np.ndarray, "h w 3"]]

    def picture(self) -> UInt8[np.ndarray, "h w 3"]:
        """Return the newest frames, enlarged, and below them the same, dark where little attention falls.

        In each camera the patch that gets most is as bright as the frame, the one that gets least is darkest.
        """
        columns = []
        for name, frame in self.frames.items():
            share = self.patches[name][-1] - self.patches[name][-1].min()
            share /= max(share.max(), np.finfo(np.float32).tiny)
            size = frame.shape[0] // share.shape[0]
            brightness = np.kron(_DARKEST + (1 - _DARKEST) * share, np.ones((size, size)))[..., None]
            columns.append(np.concatenate([frame, (frame * brightness).astype(np.uint8)]))
        return np.concatenate(columns, axis=1).repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1)


def attention_map(policy: VLAPolicy, observation: Observation) -> AttentionMap:
    """Return where a policy looks when it predicts a chunk for an observation.

    Raises:
        ObservationError: a camera or state dimension of the robot spec is missing or malformed.
        ValueError: the policy's backbone has no image patches that this knows.
    """
    backbone = policy.model.backbone
    if not isinstance(backbone, SceneBackbone):
        raise ValueError(
            f"attention_map knows the image patches of the backbone 'scene', not of "
            f"{type(backbone).__name__}; vla.model.attention.record_attention gives the weights of any model"
        )
    inputs = policy.model_inputs([observation])
    with record_attention(policy.model) as recorded:
        policy.run_model(inputs)
    weights = [(name, tensor[0].float().cpu().numpy()) for name, tensor in recorded]
    images, cameras = inputs["images"][0], policy.robot_spec.camera_names
    side = round(backbone.image_tokenizer.num_patches**0.5)
    num_patches = len(images) * side * side
    looks = [one[..., :num_patches].mean((0, 1)) for _, one in weights if one.shape[1] < one.shape[2]]
    shares = np.mean(looks, axis=0).reshape(-1, len(cameras), side, side).astype(np.float32)
    newest = images[-len(cameras) :]
    return AttentionMap(
        weights=weights,
        patches={name: shares[:, i] for i, name in enumerate(cameras)},
        frames={name: newest[i] for i, name in enumerate(cameras)},
    )
