"""Do two policies that should be the same choose the same actions? Compared in ids and in units.

A checkpoint and the bundle exported from it must agree id for id, and in all numbers to within
`MAX_ACTION_DIFFERENCE` of the range.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policies.model_policy import ModelPolicy
from vla.interface import Observation

MAX_ACTION_DIFFERENCE = 1e-5  # of each action channel's range, for two fp32 runs of one policy


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyComparison:
    """How far two policies agree on the same observations."""

    num_observations: int
    num_tokens: int
    num_different_tokens: int
    action_names: tuple[str, ...]
    max_difference: tuple[float, ...]  # of each channel, as a fraction of the channel's range

    @property
    def token_match(self) -> float:
        """Fraction of equal tokens, in [0, 1]."""
        return 1.0 - self.num_different_tokens / max(1, self.num_tokens)

    @property
    def max_action_difference(self) -> float:
        """Largest difference over all channels, as a fraction of the channel's range."""
        return max(self.max_difference)

    @property
    def passed(self) -> bool:
        """Whether all tokens are equal and all actions within `MAX_ACTION_DIFFERENCE` of the range."""
        return self.num_different_tokens == 0 and self.max_action_difference <= MAX_ACTION_DIFFERENCE

    def table(self) -> str:
        """Return the comparison as lines of text, ready to print."""
        rows = [
            f"observations          {self.num_observations}",
            f"equal tokens          {self.num_tokens - self.num_different_tokens} of {self.num_tokens}",
            f"verdict               {'equal' if self.passed else 'DIFFERENT'}",
            "largest difference    of the channel's range",
        ]
        width = max(len(name) for name in self.action_names)
        for name, difference in zip(self.action_names, self.max_difference, strict=True):
            rows.append(f"  {name:<{max(width, 20)}}{difference:.1e}")
        return "\n".join(rows)


def compare_policies(
    first: ModelPolicy, second: ModelPolicy, observations: Sequence[Observation], *, batch_size: int = 16
) -> PolicyComparison:
    """Run both policies on the same observations and compare tokens and actions.

    Args:
        first: the reference.
        second: the policy that should equal it.
        observations: at least one.
        batch_size: observations a forward pass.

    Raises:
        SpecMismatch: the two belong to different robots.
        ValueError: there is no observation, or the chunks differ in shape.
    """
    first.robot_spec.require_same(second.robot_spec, mine="first policy", theirs="second policy")
    if not observations:
        raise ValueError("no observations to compare the policies on; give at least one")
    spec = first.robot_spec
    num_tokens, num_different = 0, 0
    worst = np.zeros(len(spec.action))
    for start in range(0, len(observations), batch_size):
        batch = observations[start : start + batch_size]
        answers = first.answer(batch), second.answer(batch)
        forms = [{name: answer.shape for name, answer in each.items()} for each in answers]
        if forms[0] != forms[1]:
            raise ValueError(f"the answers differ in form: {forms[0]} against {forms[1]}")
        difference = np.abs(first.processor.decode(answers[0]) - second.processor.decode(answers[1]))
        worst = np.maximum(worst, (difference / (spec.action_high - spec.action_low)).max(axis=(0, 1)))
        for name, answer in answers[0].items():
            if answer.dtype.kind == "i":
                num_tokens += answer.size
                num_different += int((answer != answers[1][name]).sum())
    return PolicyComparison(
        num_observations=len(observations),
        num_tokens=num_tokens,
        num_different_tokens=num_different,
        action_names=spec.action_names,
        max_difference=tuple(float(value) for value in worst),
    )
