"""Gymnasium ids of our environments, by string entry points: importing this loads no simulator."""

import gymnasium

from envs.metaworld.tasks import MT50

_TABLETOP_IDS = {
    "vla/TabletopReach-v0": "reach",
    "vla/TabletopPush-v0": "push",
    "vla/TabletopLift-v0": "lift",
    "vla/TabletopPlace-v0": "place",
    "vla/TabletopStack-v0": "stack",
    "vla/TabletopOpenDrawer-v0": "open_drawer",
    "vla/TabletopCloseDrawer-v0": "close_drawer",
}

for _id, _task in _TABLETOP_IDS.items():
    if _id not in gymnasium.registry:
        gymnasium.register(id=_id, entry_point="envs.tabletop.env:TabletopEnv", kwargs={"task": _task})

for _task in MT50:
    if f"vla/MetaWorld-{_task}-v0" not in gymnasium.registry:
        gymnasium.register(
            id=f"vla/MetaWorld-{_task}-v0",
            entry_point="envs.metaworld.env:MetaWorldEnv",
            kwargs={"task": _task},
        )
