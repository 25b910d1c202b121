import control_fixtures
import pytest


@pytest.fixture(autouse=True)
def _recordings_are_closed():
    yield
    while control_fixtures.OPEN:
        control_fixtures.OPEN.pop().close()
