"""Keys that choose an environment; the programs that build one share them."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class EnvConfig:
    """Arguments of `envs.registry.make_env`, the task apart; None where the family has no such argument."""

    family: str = MISSING
    image_size: int = MISSING  # pixels, both sides
    cameras: list[str] = MISSING
    render_quality: str = MISSING  # fast | full, and for Meta-World simplified
    wording: str = MISSING  # which instructions: train | heldout
    level: str | None = None  # which colours, textures and lights; for families that have levels
    twin_share: float | None = None  # of the objects that take another's colour; for the tabletop
    tasks: list[str] = field(default_factory=list)  # of this choice; programs run their own `tasks`
