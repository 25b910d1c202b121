"""The number of threads follows what is fast at the moment, on a simulated machine."""

from vla.training.threads import ThreadChooser


class Machine:
    """A machine with a clock, whose steps take `seconds[threads]`."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now, self.said = seconds, 0.0, []

    def chooser(self, **state) -> ThreadChooser:
        return ThreadChooser(
            choices=sorted(self.seconds), report=self.said.append, clock=lambda: self.now, **state
        )

    def run(self, chooser: ThreadChooser, steps: int) -> float:
        """Return the time that the steps took, as a share of what the better choice would have taken."""
        started = self.now
        for _ in range(steps):
            taken = self.seconds[chooser.next_count()]
            self.now += taken
            chooser.record(taken)
        return (self.now - started) / (steps * min(self.seconds.values()))


def test_quiet_machine_uses_all_threads_and_loses_little() -> None:
    machine = Machine({1: 1.0, 2: 0.55})
    chooser = machine.chooser()
    assert machine.run(chooser, 200) < 1.02
    assert chooser.chosen == 2
    assert machine.said == ["a step takes, by threads, 1: 1.00 s, 2: 0.55 s; using 2"]


def test_busy_machine_uses_one_thread_and_looks_again_at_a_bounded_cost() -> None:
    machine = Machine({1: 1.5, 2: 6.0})
    chooser = machine.chooser()
    assert machine.run(chooser, 1000) < 1.06
    assert chooser.chosen == 1


def test_neighbors_that_come_and_go_are_noticed() -> None:
    machine = Machine({1: 1.0, 2: 0.55})
    chooser = machine.chooser()
    machine.run(chooser, 30)
    machine.seconds = {1: 1.5, 2: 6.0}
    machine.run(chooser, 10)
    assert chooser.chosen == 1
    machine.seconds = {1: 1.0, 2: 0.55}
    machine.run(chooser, 300)
    assert chooser.chosen == 2
    assert len(machine.said) == 3


def test_a_resumed_run_compares_nothing_while_steps_take_what_they_took() -> None:
    machine = Machine({1: 1.0, 2: 0.55})
    chooser = machine.chooser(chosen=2, usual_s=0.5)
    machine.run(chooser, 50)
    assert chooser.chosen == 2
    assert not machine.said
    slow = Machine({1: 1.5, 2: 6.0})
    chooser = slow.chooser(chosen=2, usual_s=0.5)
    slow.run(chooser, 12)
    assert chooser.chosen == 1


def test_a_fixed_number_stays() -> None:
    machine = Machine({2: 0.5})
    chooser = machine.chooser()
    machine.run(chooser, 20)
    machine.seconds = {2: 5.0}
    machine.run(chooser, 50)
    assert chooser.next_count() == chooser.chosen == 2
    assert not machine.said
