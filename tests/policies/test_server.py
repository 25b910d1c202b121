"""The server on loopback: openpi's protocol, and errors of its clients that leave it usable."""

import contextlib
import time
from pathlib import Path

import msgpack
import numpy as np
import pytest
from serving_fixtures import (
    HORIZON,
    TOKEN,
    WAIT_S,
    FakePolicy,
    arm_spec,
    expected_actions,
    message_of,
    observation_of,
    running_server,
    settings,
)
from websockets.exceptions import ConnectionClosed, InvalidStatus

from policies.exported import BundlePolicy
from policies.serving.observation_map import ObservationMap
from policies.serving.server import ServedPolicy
from policies.serving.wire import WireLimits, decode, encode
from vla.spec import RobotSpec

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def quiet():
    """A server with a fake policy that tests share as long as they leave it as it was."""
    with running_server() as running:
        yield running


def test_the_greeting_tells_what_is_served(quiet):
    with quiet.openpi() as client:
        metadata = client.metadata
    assert RobotSpec.from_json(metadata["robot_spec"]) == arm_spec()
    assert ObservationMap.from_json(metadata["observation_map"]) == ObservationMap.openpi(arm_spec())
    assert metadata["bundle_sha256"] == "a" * 64
    assert (metadata["action_dim"], metadata["action_horizon"], metadata["control_hz"]) == (2, HORIZON, 20.0)
    assert metadata["action_semantics"]["convention"] == "end_effector_delta"
    assert metadata["protocol_version"] == 1


def test_an_observation_is_answered_with_float32_actions_and_timing(quiet):
    with quiet.openpi() as client:
        first, second = client.ask(message_of(7)), client.ask(message_of(8))
    np.testing.assert_array_equal(first["actions"], expected_actions(observation_of(7)))
    assert first["actions"].dtype == np.float32
    assert set(first["server_timing"]) == {"infer_ms", "queue_ms"}
    assert second["server_timing"]["prev_total_ms"] >= first["server_timing"]["infer_ms"]
    assert [key for key, value in first.items() if isinstance(value, np.ndarray)] == ["actions"]


def test_the_reply_is_plain_openpi_without_our_extensions(quiet):
    with quiet.connect() as connection:
        connection.recv(timeout=WAIT_S)
        connection.send(encode(message_of(3)))
        reply = msgpack.unpackb(connection.recv(timeout=WAIT_S))
    assert set(reply) == {"actions", "server_timing"}
    assert reply["actions"][b"__ndarray__"] is True
    assert reply["actions"][b"shape"] == [HORIZON, 2]
    assert reply["actions"][b"dtype"] == "<f4"


def test_a_number_that_comes_with_a_request_comes_back(quiet):
    with quiet.openpi() as client:
        assert client.ask(message_of(1, seq=41))["seq"] == 41
        assert client.ask({**message_of(1, seq=42), "prompt": ""})["seq"] == 42


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"prompt": ""}, "instruction_empty"),
        ({"prompt": " \t"}, "instruction_empty"),
        ({"prompt": "x" * 1025}, "instruction_too_long"),
        ({"prompt": "x" * (1 << 20)}, "string_length"),
        ({"prompt": "lift\x00the cube"}, "instruction_control"),
        ({"prompt": "lift\x1b[2Jthe cube"}, "instruction_control"),
        ({"prompt": 5}, "instruction_type"),
        ({"observation/state": np.zeros(3, np.float32)}, "state_shape"),
        ({"observation/state": np.array([0, np.nan], np.float32)}, "state_not_finite"),
        ({"observation/state": np.array([0, 1e300])}, "state_not_finite"),
        ({"observation/state": np.zeros(2, bool)}, "state_type"),
        ({"observation/state": "x"}, "state_type"),
        ({"observation/front": np.zeros((8, 10, 3), np.float32)}, "image_type"),
        ({"observation/front": np.zeros((9, 10, 3), np.uint8)}, "image_size"),
        ({"observation/front": np.zeros((3, 8, 10), np.uint8)}, "image_shape"),
        ({"observation/front": np.zeros((2, 8, 10, 3), np.uint8)}, "image_frames"),
        ({"observation/front": np.zeros((0, 0, 3), np.uint8)}, "image_shape"),
        ({"seq": -1}, "seq"),
        ({"seq": "1"}, "seq"),
        ({"committed": np.zeros((1, 3), np.float32)}, "committed_shape"),
        ({"committed": np.full((1, 2), np.inf, np.float32)}, "committed_not_finite"),
    ],
)
def test_a_wrong_observation_is_refused_by_name_and_the_connection_lives(quiet, changes, code):
    with quiet.openpi() as client:
        error = client.ask({**message_of(1), **changes})["error"]
        assert error["code"] == code
        assert len(error["id"]) == 12
        np.testing.assert_array_equal(
            client.ask(message_of(2))["actions"], expected_actions(observation_of(2))
        )


@pytest.mark.parametrize("text", ["开灯", "ouvre le tiroir", "zzz", "hebe den w\u00fcrfel"])
def test_an_instruction_in_any_language_is_the_policys_business(quiet, text):
    with quiet.openpi() as client:
        assert client.ask({**message_of(1), "prompt": text})["actions"].shape == (HORIZON, 2)


def test_an_error_says_what_came_and_what_is_wanted(quiet):
    message = message_of(1)
    del message["observation/front"]
    message["observation/image"] = np.zeros((8, 10, 3), np.uint8)
    with quiet.openpi() as client:
        error = client.ask(message)["error"]
    assert error["code"] == "missing_key"
    assert "'observation/front'" in error["message"]
    assert "'observation/image'" in error["message"]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\xc1", "extension"),
        (b"", "truncated"),
        ("a text frame", "text_frame"),
        (b"\xdd\xff\xff\xff\xff", "array_length"),
        (b"\xdd\x00\x70\x00\x00" + b"\x80" * (7 << 20), "array_length"),
        (b"\x91" * 100_000, "depth"),
        (
            msgpack.packb({"a": {b"__ndarray__": True, b"data": b"A" * 8, b"dtype": "|O", b"shape": [1]}}),
            "dtype",
        ),
        (
            msgpack.packb({"a": {b"__ndarray__": True, b"data": b"", b"dtype": "|V0", b"shape": [2**40]}}),
            "dtype",
        ),
    ],
)
def test_a_bomb_is_refused_while_another_client_is_served(quiet, frame, code):
    with quiet.openpi() as bomber, quiet.openpi() as robot:
        assert bomber.error_code(frame) == code
        assert robot.ask(message_of(5))["actions"][0, 0] == 5
        assert bomber.ask(message_of(6))["actions"][0, 0] == 6


def test_a_frame_over_the_cap_closes_with_1009_and_nobody_else_notices():
    with (
        running_server(server_settings=settings(limits=WireLimits(max_bytes=10_000))) as running,
        running.openpi() as robot,
        running.connect() as bomber,
    ):
        bomber.recv(timeout=WAIT_S)
        bomber.send(b"\0" * 10_001)
        with pytest.raises(ConnectionClosed) as closed:
            bomber.recv(timeout=WAIT_S)
        assert closed.value.rcvd.code == 1009
        assert robot.ask(message_of(5))["actions"][0, 0] == 5


def test_a_client_that_sends_only_nonsense_is_sent_away():
    with running_server(server_settings=settings(max_malformed=3)) as running:
        with running.openpi() as client:
            for _ in range(2):
                assert client.error_code(b"\xc1") == "extension"
            assert "actions" in client.ask(message_of(1))  # a good frame forgives
            for _ in range(3):
                assert client.error_code(b"\xc1") == "extension"
            with pytest.raises(ConnectionClosed) as closed:
                client.receive()
        assert closed.value.rcvd.code == 1008


def test_an_idle_client_is_sent_away():
    with running_server(server_settings=settings(idle_timeout_s=0.2)) as running, running.openpi() as client:
        with pytest.raises(ConnectionClosed) as closed:
            client.receive()
        assert closed.value.rcvd.code == 1001


def test_a_slow_upload_counts_as_idle():
    with running_server(server_settings=settings(idle_timeout_s=0.3)) as running, running.connect() as slow:
        slow.recv(timeout=WAIT_S)

        def drip():
            for _ in range(1000):
                yield b"\x80"
                time.sleep(0.01)  # the drip itself, not a wait for something

        with pytest.raises(ConnectionClosed):
            slow.send(drip())


def test_a_client_that_never_reads_is_cut_off():
    policy = FakePolicy(answer=lambda observations: np.zeros((1, 50_000, 2), np.float32))
    policy.action_horizon = 50_000  # 400 kB an answer
    with (
        running_server(policy, server_settings=settings(send_timeout_s=1.0)) as running,
        running.connect(max_size=None, max_queue=1) as deaf,
    ):
        deaf.recv(timeout=WAIT_S)
        with contextlib.suppress(ConnectionClosed):
            for number in range(200):
                deaf.send(encode(message_of(number)))
                if not policy.entered.acquire(timeout=3.0):
                    break  # the server waits for the client to read
        give_up = time.monotonic() + WAIT_S
        while running.metrics()["connections"]["open"]:
            assert time.monotonic() < give_up
        with running.connect(max_size=None) as other:
            other.recv(timeout=WAIT_S)
            other.send(encode(message_of(1)))
            assert decode(other.recv(timeout=WAIT_S))["actions"].shape == (50_000, 2)


def test_an_unknown_path_is_not_found(quiet):
    with pytest.raises(InvalidStatus) as refused:
        quiet.connect("/admin")
    assert refused.value.response.status_code == 404


def test_metrics_count_and_give_percentiles(quiet):
    with quiet.openpi() as client:
        client.ask(message_of(1, reset=True))
        client.error_code({**message_of(1), "prompt": ""})
    metrics = quiet.metrics()
    assert metrics["policy_id"] == "a" * 64
    assert metrics["ready"] is True
    assert metrics["requests"]["episodes"] >= 1
    assert metrics["requests"]["errors"]["instruction_empty"] >= 1
    for kind in ("request", "queue", "inference"):
        latency = metrics["latency_ms"][kind]
        assert 0 <= latency["p50"] <= latency["p90"] <= latency["p99"]
    assert TOKEN not in str(metrics)


def test_a_bundle_answers_over_the_wire_as_it_answers_here():
    def load():
        policy = BundlePolicy.load(GOLDEN / "bundle_v1")
        return ServedPolicy(policy=policy, policy_id=policy.bundle_id)

    policy = BundlePolicy.load(GOLDEN / "bundle_v1")
    rng = np.random.default_rng(5)
    with running_server(load=load) as running, running.openpi() as client:
        assert client.metadata["bundle_sha256"] == policy.bundle_id
        for instruction in ("lift the red cube", "open the drawer"):
            message = {
                "observation/exterior": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8),
                "observation/wrist": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8),
                "observation/state": rng.uniform(-0.5, 0.5, 3).astype(np.float32),
                "prompt": instruction,
            }
            observation = ObservationMap.openpi(policy.robot_spec).to_observation(
                message, spec=policy.robot_spec, frame_offsets=policy.frame_offsets, stamp=0.0
            )
            wanted = policy.predict([observation])[0]
            np.testing.assert_array_equal(client.ask(message)["actions"], wanted)
        error = client.ask({**message, "committed": np.zeros((1, 3), np.float32)})["error"]
        assert error["code"] == "observation"
        assert "committed" in error["message"]
