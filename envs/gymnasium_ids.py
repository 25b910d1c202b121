"""Our environments under Gymnasium's ids; importing this module adds them, as is Gymnasium's convention.

    gymnasium.make("envs.gymnasium_ids:vla/TabletopReach-v0", level="none")

The modules of simulators are imported when an environment is made.
"""

from gymnasium.envs import registration

from envs.metaworld.tasks import MT50

TABLETOP_IDS = {
    "vla/TabletopReach-v0": "reach",
    "vla/TabletopPush-v0": "push",
    "vla/TabletopLift-v0": "lift",
    "vla/TabletopPlace-v0": "place",
    "vla/TabletopStack-v0": "stack",
    "vla/TabletopOpenDrawer-v0": "open_drawer",
    "vla/TabletopCloseDrawer-v0": "close_drawer",
}
METAWORLD_IDS = {f"vla/MetaWorld-{task}-v0": task for task in MT50}

for _ids, _entry_point in (
    (TABLETOP_IDS, "envs.tabletop.env:TabletopEnv"),
    (METAWORLD_IDS, "envs.metaworld.env:MetaWorldEnv"),
):
    for _id, _task in _ids.items():
        if _id not in registration.registry:
            registration.register(id=_id, entry_point=_entry_point, kwargs={"task": _task})
