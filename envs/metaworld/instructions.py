"""What a policy is told in Meta-World: wordings of our own for each of the 50 tasks.

No two tasks share a wording, so language alone tells them apart, also where they share a scene. Held-out
wordings are for evaluation: no demonstration has them.
"""

from envs.wordings import choose_wordings

TRAIN_WORDINGS: dict[str, tuple[str, ...]] = {
    "assembly": (
        "put the ring onto the peg",
        "lift the ring by its handle and drop it over the peg",
        "place the ring around the upright peg",
    ),
    "basketball": (
        "put the ball through the hoop",
        "drop the basketball into the hoop",
        "pick up the ball and dunk it",
    ),
    "bin-picking": (
        "move the block to the other bin",
        "take the block out of its bin and put it into the empty bin",
        "carry the block from one bin to the other",
    ),
    "box-close": (
        "put the lid on the box",
        "close the box with its lid",
        "lift the lid and set it on the box",
    ),
    "button-press": (
        "press the button on the front",
        "push the button in from the front",
        "press the red button forwards",
    ),
    "button-press-topdown": (
        "press the button from above",
        "push the button down",
        "press down on the button on top of the box",
    ),
    "button-press-topdown-wall": (
        "press the button from above, behind the wall",
        "push the button down past the wall",
        "reach over the wall and press down on the button",
    ),
    "button-press-wall": (
        "press the front button behind the wall",
        "go around the wall and push the button in",
        "pass the wall and press the red button forwards",
    ),
    "coffee-button": (
        "press the button of the coffee machine",
        "start the coffee machine",
        "push the coffee machine's button",
    ),
    "coffee-pull": (
        "pull the mug away from the coffee machine",
        "take the mug out from under the coffee machine",
        "drag the mug away from the coffee machine to the goal",
    ),
    "coffee-push": (
        "push the mug under the coffee machine",
        "slide the mug to the coffee machine",
        "move the mug into place under the coffee machine",
    ),
    "dial-turn": ("turn the dial", "rotate the dial by half a turn", "spin the knob of the dial around"),
    "disassemble": (
        "take the ring off the peg",
        "lift the ring up and away from the peg",
        "pull the ring off the upright peg",
    ),
    "door-close": ("close the door", "push the door shut", "swing the door closed"),
    "door-lock": (
        "lock the door",
        "turn the lock of the door down",
        "turn the door's lock until it is locked",
    ),
    "door-open": ("open the door", "pull the door open by its handle", "swing the door open"),
    "door-unlock": (
        "unlock the door",
        "turn the lock of the door to the side",
        "turn the door's lock until it is open",
    ),
    "drawer-close": ("close the drawer", "push the drawer in", "slide the drawer shut"),
    "drawer-open": ("open the drawer", "pull the drawer out by its handle", "slide the drawer open"),
    "faucet-close": ("close the faucet", "turn the faucet off", "turn the faucet's handle to the left"),
    "faucet-open": ("open the faucet", "turn the faucet on", "turn the faucet's handle to the right"),
    "hammer": (
        "hammer the nail into the wall",
        "pick up the hammer and drive the nail in",
        "hit the nail with the hammer",
    ),
    "hand-insert": (
        "put the hand into the hole",
        "insert the gripper into the hole in the table",
        "lower the gripper down the hole",
    ),
    "handle-press": ("press the handle down", "push the handle down from above", "move the handle downwards"),
    "handle-press-side": (
        "press the sideways handle down",
        "push down the handle that points to the side",
        "move the side handle downwards",
    ),
    "handle-pull": ("pull the handle up", "lift the handle from below", "move the handle upwards"),
    "handle-pull-side": (
        "pull the sideways handle up",
        "lift the handle that points to the side",
        "move the side handle upwards",
    ),
    "lever-pull": ("pull the lever up", "lift the lever until it points upwards", "rotate the lever upwards"),
    "peg-insert-side": (
        "insert the peg into the hole in the box",
        "push the peg into the side of the box",
        "pick up the peg and slide it into the hole",
    ),
    "peg-unplug-side": (
        "unplug the peg",
        "pull the peg out of the box",
        "take the peg out of its socket sideways",
    ),
    "pick-out-of-hole": (
        "take the puck out of the hole",
        "pick the puck out of the hole and bring it to the goal",
        "lift the puck from the hole in the table",
    ),
    "pick-place": (
        "pick up the puck and hold it at the goal",
        "lift the puck to the goal in the air",
        "grab the puck and bring it to the goal point",
    ),
    "pick-place-wall": (
        "lift the puck over the wall and hold it at the goal",
        "pick up the puck and bring it past the wall to the goal in the air",
        "grab the puck and carry it over the wall",
    ),
    "plate-slide": (
        "slide the plate into the goal",
        "push the plate forwards into the net",
        "slide the plate straight ahead into its cabinet",
    ),
    "plate-slide-back": (
        "slide the plate back out of the goal",
        "pull the plate backwards out of the net",
        "drag the plate back toward the robot",
    ),
    "plate-slide-back-side": (
        "slide the plate sideways out of the goal",
        "move the plate out of the side net",
        "drag the plate sideways away from its cabinet",
    ),
    "plate-slide-side": (
        "slide the plate sideways into the goal",
        "push the plate to the side into the net",
        "slide the plate sideways into its cabinet",
    ),
    "push": (
        "push the puck to the goal",
        "slide the puck across the table to the goal",
        "move the puck forwards to the goal without lifting it",
    ),
    "push-back": (
        "pull the puck back to the goal",
        "drag the puck toward the robot",
        "slide the block back to the goal",
    ),
    "push-wall": (
        "push the puck around the wall to the goal",
        "slide the puck past the wall",
        "get the puck to the goal behind the wall without lifting it",
    ),
    "reach": ("reach the goal", "move the gripper to the goal point", "bring the hand to the goal"),
    "reach-wall": (
        "reach the goal behind the wall",
        "move the gripper over the wall to the goal point",
        "bring the hand past the wall to the goal",
    ),
    "shelf-place": (
        "put the block on the shelf",
        "place the block onto the shelf",
        "lift the block up to the shelf",
    ),
    "soccer": (
        "kick the ball into the goal",
        "push the soccer ball into the goal",
        "score with the soccer ball",
    ),
    "stick-pull": (
        "pull the container with the stick",
        "hook the stick into the container and pull it over",
        "use the stick to pull the container to the goal",
    ),
    "stick-push": (
        "push the container with the stick",
        "pick up the stick and push the container away with it",
        "use the stick to push the container to the goal",
    ),
    "sweep": (
        "sweep the block off the table",
        "push the block over the edge of the table",
        "brush the block aside off the table",
    ),
    "sweep-into": (
        "sweep the block into the hole",
        "push the block into the hole in the table",
        "brush the puck into the hole",
    ),
    "window-close": ("close the window", "slide the window shut", "push the window closed by its handle"),
    "window-open": ("open the window", "slide the window open", "push the window open by its handle"),
}

HELDOUT_WORDINGS: dict[str, tuple[str, ...]] = {
    "assembly": ("please fit the ring over the peg",),
    "basketball": ("please score a basket with the ball",),
    "bin-picking": ("please bring the block over to the other bin",),
    "box-close": ("please cover the box with the lid",),
    "button-press": ("please press the button in from the front",),
    "button-press-topdown": ("please press the button downwards",),
    "button-press-topdown-wall": ("please press the button down that is behind the wall",),
    "button-press-wall": ("please press the button in that is behind the wall",),
    "coffee-button": ("please turn the coffee machine on",),
    "coffee-pull": ("please pull the coffee mug away from the machine",),
    "coffee-push": ("please push the coffee mug to the machine",),
    "dial-turn": ("please rotate the knob",),
    "disassemble": ("please remove the ring from the peg",),
    "door-close": ("please shut the door",),
    "door-lock": ("please make sure that the door is locked",),
    "door-open": ("please get the door to open",),
    "door-unlock": ("please make sure that the door is unlocked",),
    "drawer-close": ("please shut the drawer",),
    "drawer-open": ("please get the drawer to open",),
    "faucet-close": ("please shut the faucet",),
    "faucet-open": ("please get the faucet to run",),
    "hammer": ("please drive in the nail with the hammer",),
    "hand-insert": ("please reach down into the hole with the hand",),
    "handle-press": ("please press down on the handle",),
    "handle-press-side": ("please press down on the sideways handle",),
    "handle-pull": ("please lift up the handle",),
    "handle-pull-side": ("please lift up the sideways handle",),
    "lever-pull": ("please move the lever up",),
    "peg-insert-side": ("please plug the peg into the box",),
    "peg-unplug-side": ("please remove the peg from the box",),
    "pick-out-of-hole": ("please get the puck out of the hole",),
    "pick-place": ("please pick the puck up and take it to the goal",),
    "pick-place-wall": ("please pick the puck up and take it over the wall to the goal",),
    "plate-slide": ("please slide the plate forwards into the goal",),
    "plate-slide-back": ("please slide the plate backwards out of its cabinet",),
    "plate-slide-back-side": ("please push the plate out of the goal to the side",),
    "plate-slide-side": ("please push the plate into the goal to the side",),
    "push": ("please push the puck forwards to the goal",),
    "push-back": ("please pull the puck backwards to the goal",),
    "push-wall": ("please push the puck past the wall to the goal",),
    "reach": ("please go to the goal with the gripper",),
    "reach-wall": ("please go past the wall to the goal with the gripper",),
    "shelf-place": ("please set the block down on the shelf",),
    "soccer": ("please shoot the ball into the goal",),
    "stick-pull": ("please pull the container over with the stick",),
    "stick-push": ("please push the container away with the stick",),
    "sweep": ("please sweep the block from the table",),
    "sweep-into": ("please sweep the block down the hole",),
    "window-close": ("please shut the window",),
    "window-open": ("please get the window to open",),
}


def wordings(task: str, wording: str) -> tuple[str, ...]:
    """Return the instructions of a task.

    Raises:
        ValueError: `wording` is neither ``"train"`` nor ``"heldout"``.
    """
    return choose_wordings(task, wording, train=TRAIN_WORDINGS, heldout=HELDOUT_WORDINGS)


def phrase(task: str, wording: str, index: int) -> str:
    """Return one instruction; `index` counts through a task's wordings and wraps around.

    >>> phrase("drawer-open", "train", 3)
    'open the drawer'
    """
    choices = wordings(task, wording)
    return choices[index % len(choices)]
