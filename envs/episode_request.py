"""Which episode to run, as plain data: needs no simulator."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

INSTRUCTION_MODES = ("original", "blank", "swapped")  # which one the policy is given; the goal stays the same


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeRequest:
    """Which episode to run: everything that its course depends on, the policy apart."""

    task: str  # a name for people and files; the environment follows from env_config
    env_config: Mapping[str, Any]
    seed: int
    instruction_mode: str = "original"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the environment's reset

    def __post_init__(self) -> None:
        if self.instruction_mode not in INSTRUCTION_MODES:
            raise ValueError(
                f"instruction_mode is {self.instruction_mode!r}; choose from {INSTRUCTION_MODES}"
            )

    def describe(self) -> str:
        """Return a short name for messages."""
        return f"task {self.task}, seed {self.seed}, {self.instruction_mode} instruction"
