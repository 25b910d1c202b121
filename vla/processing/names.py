"""What the entries of a model's inputs and answers are called: cameras, joints, words, bins.

Two processors count them differently, each its own from 0. By their names it is known what a model that was
trained with one of them has already learned of what the other one makes (vla/training/warm_start.py).
"""

import math
from collections.abc import Hashable, Sequence

from vla.processing.codec import ActionCodec
from vla.processing.fast import FastCodec
from vla.processing.images import ImageInput
from vla.processing.processor import Processor
from vla.processing.state import StateInput
from vla.processing.text import TEXT_OFFSET, TextInput
from vla.spec import Channel

Names = tuple[Hashable, ...]


def axis_names(processor: Processor) -> dict[str, Names]:
    """Return the names of the entries along each kind of axis, in the order of the arrays.

    Returns:
        `images`: offset [control periods before now] and camera of each frame.
        `text_ids`: special ids by number, tokens as they are written.
        `state`, `action`: name and unit of each channel. A gripper that goes the other way is another one.
        `time`: the control periods of a chunk, from 0.
        `ids`: what each id of an action stands for; empty for a codec of real numbers.
        Inputs of other encoders than ours: kind and number of each entry of the first axis, or of each id.
    """
    spec = processor.robot_spec
    names: dict[str, Names] = {
        "action": _channels(spec.action, gripper_sign=spec.gripper_sign),
        "time": tuple(range(processor.action_horizon)),
        "ids": _ids(processor.codec),
    }
    for encoder in processor.inputs.values():
        if isinstance(encoder, ImageInput):
            cameras, offsets = spec.camera_names, processor.frame_offsets
            names["images"] = tuple((offset, camera) for offset in offsets for camera in cameras)
        elif isinstance(encoder, TextInput):
            names["text_ids"] = (*range(TEXT_OFFSET), *encoder.tokenizer.to_json()["tokens"])
        elif isinstance(encoder, StateInput):
            names["state"] = _channels(spec.state, gripper_sign="")
        else:
            kind = encoder.to_json()["kind"]
            for name, form in encoder.specs().items():
                count = form.num_ids or math.prod(form.shape[:1])
                names[name] = tuple((kind, count, number) for number in range(count))
    return names


def _channels(channels: Sequence[Channel], *, gripper_sign: str) -> Names:
    """Return name and unit of each channel; of what is called a gripper also which way it goes."""
    signs = [gripper_sign if "grip" in channel.name.lower() else "" for channel in channels]
    return tuple((channel.name, channel.unit, sign) for channel, sign in zip(channels, signs, strict=True))


def _ids(codec: ActionCodec) -> Names:
    """Return what ids stand for: symbols of FAST; of any other codec a number among as many of its kind."""
    if isinstance(codec, FastCodec):
        return tuple(("fast", codec.scale, *run) for run in codec.coefficients_of_ids())
    count, kind = max((spec.num_ids for spec in codec.specs().values()), default=0), codec.to_json()["kind"]
    return tuple((kind, count, number) for number in range(count))
