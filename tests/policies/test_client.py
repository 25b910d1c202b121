"""The remote policy: it answers as the served one does, and refuses what is no answer."""

import contextlib
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from serving_fixtures import (
    HORIZON,
    WAIT_S,
    FakePolicy,
    arm_spec,
    expected_actions,
    observation_of,
    opened,
    running_server,
    settings,
)
from websockets.sync.server import serve

from policies.exported import BundlePolicy
from policies.serving.client import PolicyUnavailable, RemotePolicy
from policies.serving.contract import RemoteContract, stated_contract
from policies.serving.observation_map import ObservationMap
from policies.serving.server import ServedPolicy, ServerSettings, server_metadata
from policies.serving.wire import decode, encode
from vla.interface import DecodeError, ObservationError, Policy
from vla.spec import SpecMismatch

GOLDEN = Path(__file__).parents[1] / "golden"
GOOD = np.ones((HORIZON, 2), np.float32)


def test_a_client_learns_in_what_setting_the_policy_was_trained():
    setting = {"env": {"family": "point", "cameras": ["top"]}, "tasks": ["reach"], "varied": {}}
    contract = stated_contract(decode(encode(metadata(setting=setting))))
    assert contract is not None
    assert contract.setting == setting
    none = stated_contract(metadata())
    assert none is not None
    assert none.setting is None
    with pytest.raises(ValueError, match="a setting that is no map"):
        stated_contract(metadata(setting="point"))


def metadata(**changes):
    served = ServedPolicy(policy=FakePolicy(), policy_id="a" * 64)
    told = server_metadata(
        served, observation_map=ObservationMap.openpi(arm_spec()), settings=ServerSettings()
    )
    return {**told, **changes}


@contextlib.contextmanager
def scripted_server(answer, *, greeting=None):
    """A server that does what `answer(connection, request)` does with each decoded request."""

    def handle(connection):
        connection.send(encode(metadata()) if greeting is None else greeting)
        with contextlib.suppress(Exception):  # the client left, as it should
            for frame in connection:
                answer(connection, decode(frame))

    server = serve(handle, "127.0.0.1", 0, compression=None, max_size=None)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()
        thread.join(WAIT_S)


def test_it_is_a_policy_and_answers_as_the_served_one():
    with running_server() as running, opened(running) as remote:
        assert isinstance(remote, Policy)
        assert remote.robot_spec == arm_spec()
        assert (remote.frame_offsets, remote.action_horizon) == ((0,), HORIZON)
        assert remote.contract.policy_id == "a" * 64
        observations = [observation_of(number) for number in (3, 4, 5)]
        wanted = np.stack([expected_actions(observation) for observation in observations])
        np.testing.assert_array_equal(remote.predict(observations), wanted)


def test_frames_of_the_past_and_promised_actions_arrive():
    policy = FakePolicy(frame_offsets=(4, 0))
    observation = observation_of(3, frames=2)
    promised = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    object.__setattr__(observation, "committed", promised)
    served = ServedPolicy(policy=policy, policy_id="a" * 64, max_committed=3)
    with running_server(load=lambda: served) as running, opened(running) as remote:
        assert (remote.frame_offsets, remote.max_committed) == ((4, 0), 3)
        remote.predict([observation])
    (seen,) = policy.seen
    np.testing.assert_array_equal(seen.committed, promised)
    np.testing.assert_array_equal(seen.images["front"], observation.images["front"])


def test_any_map_of_the_server_is_followed():
    odd = ObservationMap(
        cameras={"front": "images.cam"}, state=("proprio.all",), instruction="task", layout="chw"
    )
    policy = FakePolicy()
    with (
        running_server(policy, server_settings=settings(openpi_map=lambda spec: odd)) as running,
        opened(running) as remote,
    ):
        observation = observation_of(9)
        np.testing.assert_array_equal(remote.predict([observation])[0], expected_actions(observation))
    np.testing.assert_array_equal(policy.seen[0].images["front"], observation.images["front"])


def test_a_bundle_behind_the_wire_gives_the_same_actions():
    policy = BundlePolicy.load(GOLDEN / "bundle_v1")
    rng = np.random.default_rng(3)
    spec = policy.robot_spec
    observation = observation_of(0)
    images = {name: rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8) for name in spec.camera_names}
    object.__setattr__(observation, "images", images)
    object.__setattr__(observation, "state", rng.uniform(-0.5, 0.5, 3).astype(np.float32))
    with (
        running_server(load=lambda: ServedPolicy(policy=policy, policy_id=policy.bundle_id)) as running,
        opened(running, expected_policy_id=policy.bundle_id) as remote,
    ):
        np.testing.assert_array_equal(remote.predict([observation]), policy.predict([observation]))


def test_a_refused_observation_is_an_observation_error_and_the_connection_lives():
    with running_server() as running, opened(running) as remote:
        bad = observation_of(1)
        object.__setattr__(bad, "instruction", "")
        with pytest.raises(ObservationError, match="instruction_empty"):
            remote.predict([bad])
        with pytest.raises(ObservationError, match="no observations"):
            remote.predict([])
        assert remote.predict([observation_of(2)])[0, 0, 0] == 2


def test_an_exception_behind_the_wire_is_unavailable_and_the_next_request_works():
    def answer(observations):
        if observations[0].state[0] == 13:
            raise RuntimeError("boom")
        return np.stack([expected_actions(observation) for observation in observations])

    with running_server(FakePolicy(answer=answer)) as running, opened(running) as remote:
        with pytest.raises(PolicyUnavailable) as caught:
            remote.predict([observation_of(13)])
        assert caught.value.code == "internal"
        assert "boom" not in str(caught.value)
        assert remote.predict([observation_of(2)])[0, 0, 0] == 2


def test_no_action_is_a_decode_error():
    nan = np.full((1, HORIZON, 2), np.nan, np.float32)
    with (
        running_server(FakePolicy(answer=lambda observations: nan)) as running,
        opened(running) as remote,
        pytest.raises(DecodeError, match="Hold"),
    ):
        remote.predict([observation_of(1)])


@pytest.mark.parametrize(
    "actions",
    [
        np.full((HORIZON, 2), np.nan, np.float32),
        np.full((HORIZON, 2), -np.inf, np.float32),
        np.full((HORIZON, 2), 1e300),
        np.zeros((HORIZON, 3), np.float32),
        np.zeros((HORIZON - 1, 2), np.float32),
        np.zeros((0, 2), np.float32),
        np.zeros((HORIZON, 2), np.int32),
        [[0.0, 0.0]] * HORIZON,
        None,
    ],
)
def test_a_reply_that_is_no_chunk_is_a_decode_error(actions):
    def answer(connection, request):
        connection.send(encode({"actions": actions, "seq": request["seq"]}))

    with scripted_server(answer) as url, RemotePolicy.open(url) as remote, pytest.raises(DecodeError):
        remote.predict([observation_of(1)])


@pytest.mark.parametrize(
    "frame",
    [
        b"\xc1",
        b"",
        b"\x80" * 5000,
        b"\x91" * 100_000,
        b"\x81\xa7actions\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x08AAAAAAAA\xc4\x05dtype\xa2|O\xc4\x05shape\x91\x01",
    ],
)
def test_a_hostile_server_cannot_harm_the_client(frame):
    with (
        scripted_server(lambda connection, request: connection.send(frame)) as url,
        RemotePolicy.open(url) as remote,
    ):
        with pytest.raises(PolicyUnavailable) as caught:
            remote.predict([observation_of(1)])
        assert caught.value.code == "bad_reply"
        assert not remote.connected


@pytest.mark.parametrize(
    "text",
    ["Traceback: boom", "[" * 100_000, '{"error": 3}', '{"error": {"code": 5, "message": []}}', "null"],
)
def test_any_error_text_is_unavailable(text):
    with (
        scripted_server(lambda connection, request: connection.send(text)) as url,
        RemotePolicy.open(url) as remote,
        pytest.raises(PolicyUnavailable, match="error"),
    ):
        remote.predict([observation_of(1)])


def test_late_repeated_and_replayed_replies_are_dropped():
    sent = []

    def answer(connection, request):
        reply = encode({"actions": GOOD * request["seq"], "seq": request["seq"]})
        old = [encode({"actions": GOOD * 99, "seq": seq}) for seq in (0, 999)]
        unnumbered = encode({"actions": GOOD * 98})
        complaint = json.dumps({"error": {"code": "deadline", "message": "late"}, "seq": 0})
        for frame in (*sent, *old, unnumbered, complaint, reply, reply):
            connection.send(frame)
        sent.append(reply)

    with scripted_server(answer) as url, RemotePolicy.open(url) as remote:
        got = [remote.predict([observation_of(1)])[0, 0, 0] for _ in range(4)]
        assert got == [1, 2, 3, 4]
        assert remote.num_dropped_replies >= 4 * 4


def test_endless_stale_replies_do_not_hold_the_client():
    def answer(connection, request):
        while True:
            connection.send(encode({"actions": GOOD, "seq": 0}))

    with scripted_server(answer) as url, RemotePolicy.open(url, timeout_s=0.3) as remote:
        start = time.monotonic()
        with pytest.raises(PolicyUnavailable) as caught:
            remote.predict([observation_of(1)])
        assert caught.value.code == "timeout"
        assert time.monotonic() - start < WAIT_S


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol_version": 2},
        {"robot_spec": {}},
        {"robot_spec": None},
        {"action_horizon": 0},
        {"action_horizon": "16"},
        {"action_horizon": 10**9},
        {"frame_offsets": []},
        {"max_committed": HORIZON},
        {"max_committed": None},
        {"bundle_sha256": None},
        {"observation_map": {}},
        {"observation_map": None},
    ],
)
def test_metadata_of_another_form_is_refused(changes):
    greeting = encode(metadata(**changes))
    with scripted_server(lambda *_: None, greeting=greeting) as url:
        with pytest.raises(PolicyUnavailable) as caught:
            RemotePolicy.open(url)
        assert caught.value.code == "greeting"


def test_another_bundle_or_robot_than_expected_is_refused():
    other = RemoteContract(
        robot_spec=arm_spec(control_hz=10.0),
        action_horizon=HORIZON,
        observation_map=ObservationMap.openpi(arm_spec()),
    )
    with running_server() as running:
        with pytest.raises(PolicyUnavailable) as caught:
            opened(running, expected_policy_id="b" * 64)
        assert caught.value.code == "other_policy"
        with pytest.raises(SpecMismatch, match="control_hz"):
            opened(running, contract=other)


def test_a_server_of_openpi_itself_needs_a_contract():
    def answer(connection, request):
        assert "seq" not in request
        connection.send(encode({"actions": GOOD.astype(np.float64), "server_timing": {"infer_ms": 1.0}}))

    contract = RemoteContract(
        robot_spec=arm_spec(), action_horizon=HORIZON, observation_map=ObservationMap.openpi(arm_spec())
    )
    with scripted_server(answer, greeting=encode({})) as url:
        with pytest.raises(PolicyUnavailable) as caught:
            RemotePolicy.open(url)
        assert caught.value.code == "foreign"
        with RemotePolicy.open(url, contract=contract) as remote:
            np.testing.assert_array_equal(remote.predict([observation_of(1)])[0], GOOD)
