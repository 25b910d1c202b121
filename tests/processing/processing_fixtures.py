"""A processor fitted to few demonstrations, chunks of five."""

from vla.processing.moments import Demonstrations
from vla.processing.processor import Processor

INSTRUCTIONS = ["push the red cube to the green mat", "lift the blue ball", "Reach for the yellow cylinder."]


def fit(
    robot_spec,
    states,
    actions,
    *,
    codec="uniform",
    constant_dims=(),
    max_tokens=16,
    frame_offsets=(4, 0),
) -> Processor:
    chunks = actions[: len(actions) // 5 * 5].reshape(-1, 5, actions.shape[1])
    return Processor.fit(
        Demonstrations(
            robot_spec=robot_spec, states=states, actions=actions, chunks=chunks, instructions=INSTRUCTIONS
        ),
        codec={"kind": codec},
        inputs={
            "images": {"kind": "images"},
            "text": {"kind": "text", "max_tokens": max_tokens},
            "state": {"kind": "state", "constant_dims": list(constant_dims)},
        },
        frame_offsets=frame_offsets,
        max_committed=2,
    )
