"""A policy that fails, hangs or cannot be loaded: the server says so, keeps its deadline and serves on."""

import threading

import numpy as np
import pytest
from serving_fixtures import (
    HORIZON,
    WAIT_S,
    FakePolicy,
    expected_actions,
    message_of,
    observation_of,
    running_server,
    settings,
)
from websockets.exceptions import InvalidStatus

from policies.serving.observation_map import ObservationMap
from policies.serving.server import ServedPolicy
from vla.interface import DecodeError, ObservationError


def test_an_exception_in_the_policy_shows_an_id_and_no_more(caplog):
    def answer(observations):
        if observations[0].state[0] == 13:
            raise RuntimeError("secret path /root/bundle")
        return np.stack([expected_actions(observation) for observation in observations])

    with running_server(FakePolicy(answer=answer)) as running, running.openpi() as client:
        error = client.ask(message_of(13))["error"]
        assert error["code"] == "internal"
        assert "secret" not in str(error)
        assert "Traceback" not in str(error)
        assert client.ask(message_of(14))["actions"][0, 0] == 14
        assert running.metrics()["requests"]["errors"] == {"internal": 1}
    (record,) = [record for record in caplog.records if error["id"] in record.getMessage()]
    assert "secret path" in caplog.text
    assert record.exc_info is not None


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (np.full((1, HORIZON, 2), np.nan, np.float32), "bad_action"),
        (np.full((1, HORIZON, 2), np.inf, np.float32), "bad_action"),
        (np.zeros((1, HORIZON, 3), np.float32), "bad_action"),
        (np.zeros((1, 0, 2), np.float32), "bad_action"),
        (np.zeros((0, HORIZON, 2), np.float32), "bad_action"),
        (np.zeros((1, HORIZON, 2), np.float64), "bad_action"),
        (None, "bad_action"),
        (DecodeError("no tokens"), "no_action"),
        (ObservationError("the policy wants more"), "observation"),
        (TimeoutError("of the policy's own"), "internal"),
    ],
)
def test_no_bad_action_leaves_the_server(answer, code):
    def give(observations):
        if isinstance(answer, Exception):
            raise answer
        return answer

    policy = FakePolicy(answer=give)
    with running_server(policy) as running, running.openpi() as client:
        assert client.error_code(message_of(1)) == code


def test_the_deadline_is_kept_while_the_policy_hangs_and_readiness_tells():
    policy = FakePolicy()
    with running_server(policy, server_settings=settings(request_timeout_s=1.0)) as running:
        with running.openpi() as client:
            policy.gate.clear()
            assert client.error_code(message_of(1)) == "deadline"
            assert client.error_code(message_of(2)) == "deadline"  # never started
            assert running.get("/readyz")[0] == 503
            assert running.get("/healthz") == (200, "OK\n")
            policy.gate.set()
            object.__setattr__(
                running.server._settings.session, "request_timeout_s", WAIT_S
            )  # a busy machine
            assert client.ask(message_of(3))["actions"][0, 0] == 3
            assert running.get("/readyz") == (200, "OK\n")
        assert [observation.state[0] for observation in policy.seen] == [1, 3]


def test_the_newest_waiting_observation_wins():
    policy = FakePolicy()
    with running_server(policy) as running, running.openpi() as client:
        policy.gate.clear()
        client.send(message_of(1, seq=1))
        assert policy.entered.acquire(timeout=WAIT_S)
        for number in (2, 3, 4):
            client.send(message_of(number, seq=number))
        superseded = [client.receive(), client.receive()]
        policy.gate.set()
        answers = [client.receive(), client.receive()]
    assert [(reply["seq"], reply["error"]["code"]) for reply in superseded] == [
        (2, "superseded"),
        (3, "superseded"),
    ]
    assert [(reply["seq"], reply["actions"][0, 0]) for reply in answers] == [(1, 1), (4, 4)]
    assert [observation.state[0] for observation in policy.seen] == [1, 4]


def test_many_connections_never_mix():
    failures = []

    def robot(first):
        with running.openpi() as client:
            for number in range(first, first + 30):
                reply = client.ask(message_of(number, seq=number))
                wanted = expected_actions(observation_of(number))
                if reply["seq"] != number or not np.array_equal(reply["actions"], wanted):
                    failures.append((number, reply))

    with running_server() as running:
        threads = [threading.Thread(target=robot, args=(1000 * i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert running.metrics()["requests"]["answered"] == 180
    assert not failures


def test_a_client_that_leaves_in_mid_inference_harms_nobody():
    policy = FakePolicy()
    with running_server(policy) as running:
        policy.gate.clear()
        with running.openpi() as client:
            client.send(message_of(1))
            assert policy.entered.acquire(timeout=WAIT_S)
        policy.gate.set()
        with running.openpi() as client:
            assert client.ask(message_of(2))["actions"][0, 0] == 2


def test_nothing_is_served_before_the_policy_has_proved_itself():
    loading, proved = threading.Event(), threading.Event()

    def load():
        loading.set()
        assert proved.wait(WAIT_S)
        return ServedPolicy(policy=FakePolicy(), policy_id="b" * 64)

    with running_server(load=load, wait_ready=False) as running:
        assert loading.wait(WAIT_S)
        assert running.get("/healthz") == (200, "OK\n")
        assert running.get("/readyz") == (503, "loading\n")
        assert running.get("/health")[0] == 503
        with pytest.raises(InvalidStatus) as refused:
            running.connect()
        assert refused.value.response.status_code == 503
        proved.set()


def test_a_policy_that_cannot_be_loaded_ends_the_server():
    def load():
        raise ValueError("damaged bundle")

    with pytest.raises(ValueError, match="damaged bundle"), running_server(load=load):
        pass


def test_a_map_that_does_not_fit_the_policy_ends_the_server():
    wrong = ObservationMap(cameras={"top": "image"}, state=("state",), instruction="prompt")
    with (
        pytest.raises(ValueError, match=r"\['front'\].*\['top'\]"),
        running_server(server_settings=settings(openpi_map=lambda spec: wrong)),
    ):
        pass
