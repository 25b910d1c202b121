"""Our environments under Gymnasium's ids: `gymnasium.make("vla/TabletopReach-v0")`.

An installed package needs no import for that: Gymnasium calls `register` itself, by the entry point in
pyproject.toml. The modules of simulators are imported when an environment is made.
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


def register() -> None:
    """Add the ids of all tasks to Gymnasium's; those that are there stay as they are."""
    metaworld = {f"vla/MetaWorld-{task}-v0": task for task in MT50}
    for ids, entry_point in (
        (TABLETOP_IDS, "envs.tabletop.env:TabletopEnv"),
        (metaworld, "envs.metaworld.env:MetaWorldEnv"),
    ):
        for name, task in ids.items():
            if name not in registration.registry:
                registration.register(id=name, entry_point=entry_point, kwargs={"task": task})
