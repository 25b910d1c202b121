"""Did two evaluations execute the very same actions? The closed-loop side of export parity.

It needs neither torch nor onnxruntime: it reads the actions that evaluations keep for replays.
"""

from dataclasses import dataclass

import numpy as np

from envs.evaluation.results import Evaluation, actions_path


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutedComparison:
    """How many shared episodes ran identically, action for action, and how many ended alike."""

    shared: int
    identical: int
    same_outcome: int

    def sentence(self) -> str:
        """Return the counts as one sentence."""
        return (
            f"Closed loop: {self.identical} of {self.shared} shared episodes are equal action for action; "
            f"{self.same_outcome} end alike."
        )


def compare_executed(a: Evaluation, b: Evaluation) -> ExecutedComparison:
    """Compare the executed actions of the episodes that both evaluations have, by task and seed.

    Raises:
        FileNotFoundError: the actions of an episode were not kept.
    """
    success_b = {(row.task, row.seed): row.success for row in b.rows}
    shared = [row for row in a.rows if (row.task, row.seed) in success_b]
    identical = 0
    for row in shared:
        first, second = (
            np.load(actions_path(evaluation.run_dir, row.task, row.seed), allow_pickle=False)
            for evaluation in (a, b)
        )
        identical += first.shape == second.shape and bool((first == second).all())
    return ExecutedComparison(
        shared=len(shared),
        identical=identical,
        same_outcome=sum(row.success == success_b[row.task, row.seed] for row in shared),
    )
