"""Do two policies that should be the same choose the same actions? Answers in tokens and in units.

A checkpoint and the bundle exported from it must agree token for token. Knows neither torch nor onnxruntime:
anything that tells its bins can be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from policies.token_policy import TokenPolicy
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
        return 1.0 - self.num_different_tokens / self.num_tokens

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
    first: TokenPolicy, second: TokenPolicy, observations: Sequence[Observation], *, batch_size: int = 16
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
        bins = first.predict_bins(batch), second.predict_bins(batch)
        if bins[0].shape != bins[1].shape:
            raise ValueError(f"chunks [batch time action] differ: {bins[0].shape} against {bins[1].shape}")
        difference = np.abs(first.decode_bins(bins[0]) - second.decode_bins(bins[1]))
        worst = np.maximum(worst, (difference / (spec.action_high - spec.action_low)).max(axis=(0, 1)))
        num_tokens += bins[0].size
        num_different += int((bins[0] != bins[1]).sum())
    return PolicyComparison(
        num_observations=len(observations),
        num_tokens=num_tokens,
        num_different_tokens=num_different,
        action_names=spec.action_names,
        max_difference=tuple(float(value) for value in worst),
    )
