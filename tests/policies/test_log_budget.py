"""A log that others can fill has a limit, and says what it leaves out."""

import logging

from policies.serving.log_budget import LineBudget


def test_a_flood_of_lines_passes_as_a_burst_and_then_at_a_rate():
    now, lines = [0.0], []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.Logger("flooded")
    logger.addHandler(handler)
    logger.addFilter(LineBudget(burst=10, per_minute=60, clock=lambda: now[0]))
    for number in range(1000):
        logger.warning("line %d of %s", number, "a client")
    assert lines == [f"line {number} of a client" for number in range(10)]
    now[0] = 1.0
    logger.warning("line %d", 1000)
    logger.warning("line %d", 1001)
    assert lines[10:] == ["line 1000 (990 lines before this one were left out)"]
    now[0] = 3600.0
    for number in range(1000):
        logger.warning("again %d", number)
    assert len(lines) == 11 + 10


def test_several_loggers_share_a_budget():
    budget, passed = LineBudget(burst=3, per_minute=60, clock=lambda: 0.0), 0
    for _ in range(10):
        for name in ("a", "b"):
            record = logging.LogRecord(name, logging.INFO, "", 0, "text", (), None)
            passed += budget.filter(record)
    assert passed == 3
