"""The scripted expert of a live view as a policy, for trying the chain to a Franka arm without a bundle.

    python -m experiments.franka.expert '{"family": "tabletop", "task": "reach", ...}' 620000

Serves it on an unused port of this machine until it is killed. It sees where the objects are, so what it
reaches says nothing about policies; cameras, protocols, limits and deadlines are as with one.
"""

import asyncio
import json
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from envs.tabletop.experts import Hand
from envs.tabletop.live_view import LiveView
from experiments.franka.scene import open_live_view
from policies.serving.access import Access
from policies.serving.server import PolicyServer, ServedPolicy
from vla.interface import Observation

HORIZON = 8


class ExpertPolicy:
    """Predicts what the expert of a scene would do from the measured state on. Looks at no picture."""

    frame_offsets = (0,)
    action_horizon = HORIZON

    def __init__(self, view: LiveView) -> None:
        self.robot_spec, self._view = view.robot_spec, view

    def predict(self, observations: Sequence[Observation]) -> Float32[np.ndarray, "batch time action"]:
        """Return the expert's actions for a hand that follows them exactly."""
        return np.stack([self._view.expert_chunk(self._hand(one), horizon=HORIZON) for one in observations])

    def _hand(self, observation: Observation) -> Hand:
        value = dict(zip(self.robot_spec.state_names, map(float, observation.state), strict=True))
        return Hand(
            position=np.array([value["tcp_x"], value["tcp_y"], value["tcp_z"]]),
            angles=np.array([0.0, 0.0, np.arctan2(value["yaw_sin"], value["yaw_cos"])]),
            opening=value["gripper_opening"],
        )


async def serve_expert(view: LiveView) -> None:
    """Serve until the process is ended."""
    server = PolicyServer(
        load=lambda: ServedPolicy(policy=ExpertPolicy(view), policy_id="scripted expert"),
        access=Access(host="127.0.0.1", port=0),
    )
    await server.run(asyncio.Event(), on_ready=lambda: print(f"ws://127.0.0.1:{server.port}", flush=True))


if __name__ == "__main__":
    with open_live_view(json.loads(sys.argv[1])) as scene:
        scene.begin(seed=int(sys.argv[2]))
        asyncio.run(serve_expert(scene))
