"""What keeps the loop on its grid."""

import gc
import time

import pytest

from policies.runtime.clock import MonotonicClock, Pacer, short_collections


@pytest.fixture
def no_date(monkeypatch):
    """The date may jump at any moment, so that nobody who keeps a deadline may look at it."""

    def fail():
        pytest.fail("a deadline was taken from the date")

    for name in ("time", "time_ns", "gmtime", "localtime"):
        monkeypatch.setattr(time, name, fail)


def test_the_computer_s_clock_goes_on_whatever_the_date_does(no_date):
    clock = MonotonicClock()
    before, asked = time.monotonic(), clock.now()
    assert before <= asked <= time.monotonic()
    clock.sleep_until(asked + 0.01)
    assert clock.now() >= asked + 0.01


def test_periods_are_kept_whatever_the_date_does(no_date):
    pacer, began = Pacer(clock=MonotonicClock(), period_s=0.01), time.monotonic()
    for _ in range(4):
        pacer.wait()
    assert time.monotonic() - began >= 0.03 or pacer.num_missed


def test_collections_leave_out_what_was_alive_before_and_look_at_it_again_afterward():
    alive = gc.get_freeze_count()
    with short_collections():
        assert gc.get_freeze_count() > alive
    assert gc.get_freeze_count() == 0
