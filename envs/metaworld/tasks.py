"""The 50 tasks of Meta-World as data: the published sets and difficulty tiers, and which share a scene.

Names are Meta-World's own without their version ("-v3"). Needs no simulator installed.
"""

# Seo et al. 2022 (arXiv:2206.14244), the tiers by which SmolVLA and its successors report MT50.
TIERS: dict[str, tuple[str, ...]] = {
    "easy": (
        "button-press", "button-press-topdown", "button-press-topdown-wall", "button-press-wall",
        "coffee-button", "dial-turn", "door-close", "door-lock", "door-open", "door-unlock", "drawer-close",
        "drawer-open", "faucet-close", "faucet-open", "handle-press", "handle-press-side", "handle-pull",
        "handle-pull-side", "lever-pull", "peg-unplug-side", "plate-slide", "plate-slide-back",
        "plate-slide-back-side", "plate-slide-side", "reach", "reach-wall", "window-close", "window-open",
    ),
    "medium": (
        "basketball", "bin-picking", "box-close", "coffee-pull", "coffee-push", "hammer", "peg-insert-side",
        "push-wall", "soccer", "sweep", "sweep-into",
    ),
    "hard": ("assembly", "hand-insert", "pick-out-of-hole", "pick-place", "push", "push-back"),
    "very hard": ("disassemble", "pick-place-wall", "shelf-place", "stick-pull", "stick-push"),
}  # fmt: skip

MT50: tuple[str, ...] = tuple(sorted(task for tasks in TIERS.values() for task in tasks))

MT10: tuple[str, ...] = (
    "reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown",
    "peg-insert-side", "window-open", "window-close",
)  # fmt: skip

# Tasks whose scenes are built from the same objects, so that a picture alone need not tell which is meant.
SHARED_SCENES: tuple[tuple[str, ...], ...] = (
    ("assembly", "disassemble"),
    ("coffee-button", "coffee-pull", "coffee-push"),
    ("door-close", "door-open"),
    ("door-lock", "door-unlock"),
    ("drawer-close", "drawer-open"),
    ("faucet-close", "faucet-open"),
    ("hand-insert", "sweep-into"),
    ("handle-press", "handle-pull"),
    ("handle-press-side", "handle-pull-side"),
    ("plate-slide", "plate-slide-back"),
    ("plate-slide-back-side", "plate-slide-side"),
    ("stick-pull", "stick-push"),
    ("window-close", "window-open"),
)

# Where no other task has the same scene: the one whose scene looks most alike.
_LOOKALIKES: dict[str, str] = {
    "basketball": "soccer",
    "bin-picking": "pick-out-of-hole",
    "box-close": "shelf-place",
    "button-press": "button-press-topdown",
    "button-press-topdown": "button-press",
    "button-press-topdown-wall": "button-press-wall",
    "button-press-wall": "button-press-topdown-wall",
    "dial-turn": "faucet-open",
    "hammer": "lever-pull",
    "lever-pull": "hammer",
    "peg-insert-side": "peg-unplug-side",
    "peg-unplug-side": "peg-insert-side",
    "pick-out-of-hole": "bin-picking",
    "pick-place": "push",
    "pick-place-wall": "push-wall",
    "push": "pick-place",
    "push-back": "push",
    "push-wall": "pick-place-wall",
    "reach": "push",
    "reach-wall": "push-wall",
    "shelf-place": "box-close",
    "soccer": "basketball",
    "sweep": "push",
}


def swapped_task(task: str) -> str:
    """Return the task whose instruction is given as the swapped one.

    It is one of the same scene where there is one, else one of a similar scene.

    >>> swapped_task("drawer-open"), swapped_task("coffee-push"), swapped_task("hammer")
    ('drawer-close', 'coffee-button', 'lever-pull')
    """
    for scene in SHARED_SCENES:
        if task in scene:
            return scene[(scene.index(task) + 1) % len(scene)]
    return _LOOKALIKES[task]
