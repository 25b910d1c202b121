"""Chooses between one thread and all of them by timing training steps, at the start and when things change.

Threads wait for each other at every operator, so that next to one busy neighbor two threads can be four times
slower than one; on a quiet machine they are almost twice as fast. No work is lost on the question: the timed
steps are steps of the training.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

_WINDOW = 5  # steps over which a change is noticed
_SLOWER = 2.0  # a step that takes this many times longer than it did calls for another look
_AGAIN_S = 30.0  # when fewer threads than all are in use, look again after this time at the earliest
_AGAIN_COST = 25  # and after this many times what the last look cost
_ENOUGH = ((1, 2.0), (2, 1.3), (3, 1.0))  # pairs of steps, ratio of their medians: what decides


class ThreadChooser:
    """Says before each step on how many threads it should run, and learns how long the step took.

    Args:
        choices: the numbers of threads to choose from: one, or 1 and all.
        chosen: what a resumed run used; None asks for a comparison first.
        usual_s: how long a step took then [s].
        report: receives a sentence for the log at every choice.
        clock: monotonic time [s].
    """

    def __init__(
        self,
        *,
        choices: Sequence[int],
        chosen: int | None = None,
        usual_s: float | None = None,
        report: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.choices, self._report, self._clock = tuple(sorted(set(choices))), report, clock
        self.chosen = chosen if chosen in self.choices else self.choices[-1]
        self.usual_s = usual_s
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._trial: dict[int, list[float]] = {}
        self._is_first_step = True
        self._compared_at, self._cost_s = clock(), 0.0
        self._must_compare = chosen not in self.choices

    def next_count(self) -> int:
        """Return the number of threads for the next step."""
        if self._is_first_step and self._must_compare:
            return self.choices[0]  # slow on a quiet machine, but never as slow as all on a busy one
        if not self._trial:
            return self.chosen
        return min(self._trial, key=lambda count: (len(self._trial[count]), count))

    def record(self, seconds: float) -> None:
        """Take the duration of the step that ran on `next_count()` threads."""
        if self._is_first_step:  # memory is first touched in it
            self._is_first_step = False
            if self._must_compare:
                self._compare()
            return
        if self._trial:
            self._trial[self.next_count()].append(seconds)
            self._decide()
            return
        self._recent.append(seconds)
        if len(self._recent) < _WINDOW:
            return
        now = median(self._recent)
        if self.usual_s is None or now < self.usual_s:
            self.usual_s = now
        if now > _SLOWER * self.usual_s or self._is_time_to_look_again():
            self._compare()

    def _is_time_to_look_again(self) -> bool:
        wait = max(_AGAIN_S, _AGAIN_COST * self._cost_s)
        return self.chosen < self.choices[-1] and self._clock() - self._compared_at > wait

    def _compare(self) -> None:
        self._recent.clear()
        if len(self.choices) > 1:
            self._trial = {count: [] for count in self.choices}

    def _decide(self) -> None:
        """End the comparison if its steps are enough to tell."""
        pairs = min(len(times) for times in self._trial.values())
        if pairs == 0 or len({len(times) for times in self._trial.values()}) > 1:
            return
        medians = {count: median(times) for count, times in self._trial.items()}
        best = min(medians, key=lambda count: medians[count])
        if not any(pairs >= needed and max(medians.values()) >= r * medians[best] for needed, r in _ENOUGH):
            return
        self._cost_s = sum(sum(times) - len(times) * medians[best] for times in self._trial.values())
        measured = ", ".join(f"{count}: {medians[count]:.2f} s" for count in sorted(medians))
        if best != self.chosen or self.usual_s is None:
            self._report(f"a step takes, by threads, {measured}; using {best}")
        self.chosen, self.usual_s, self._trial = best, medians[best], {}
        self._compared_at = self._clock()
