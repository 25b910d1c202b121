"""The server on loopback: openpi's protocol, errors that leave it usable, deadlines, who may connect."""

import contextlib
import logging
import ssl
import threading
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
    raw_socket,
    running_server,
    settings,
)
from websockets.exceptions import ConnectionClosed, InvalidStatus

from policies.exported import BundlePolicy
from policies.interface import DecodeError, ObservationError
from policies.serving.access import Access, AccessError, read_token, server_tls
from policies.serving.observation_map import ObservationMap
from policies.serving.server import ServedPolicy
from policies.serving.wire import WireLimits, decode, encode
from policies.spec import RobotSpec

GOLDEN = Path(__file__).parents[1] / "golden"
TLS = GOLDEN / "tls"


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
        ({"observation/state": np.zeros(2, np.int32)}, "state_type"),
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
        running_server(policy, server_settings=settings(send_timeout_s=0.3)) as running,
        running.connect(max_size=None, max_queue=1) as deaf,
    ):
        deaf.recv(timeout=WAIT_S)
        with contextlib.suppress(ConnectionClosed):
            for number in range(200):
                deaf.send(encode(message_of(number)))
                if not policy.entered.acquire(timeout=1.0):
                    break  # the server waits for the client to read
        give_up = time.monotonic() + WAIT_S
        while running.metrics()["connections"]["open"]:
            assert time.monotonic() < give_up
        with running.connect(max_size=None) as other:
            other.recv(timeout=WAIT_S)
            other.send(encode(message_of(1)))
            assert decode(other.recv(timeout=WAIT_S))["actions"].shape == (50_000, 2)


# ---- failures of the policy


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
    with running_server(policy, server_settings=settings(request_timeout_s=0.2)) as running:
        with running.openpi() as client:
            policy.gate.clear()
            assert client.error_code(message_of(1)) == "deadline"
            assert client.error_code(message_of(2)) == "deadline"  # never started
            assert running.get("/readyz")[0] == 503
            assert running.get("/healthz") == (200, "OK\n")
            policy.gate.set()
            assert policy.entered.acquire(timeout=WAIT_S)
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


# ---- who may connect


def test_one_connection_too_many_is_refused_until_one_leaves():
    with (
        running_server(server_settings=settings(max_connections=1)) as running,
        running.openpi() as first,
    ):
        with pytest.raises(InvalidStatus) as refused:
            running.connect()
        assert refused.value.response.status_code == 503
        assert first.ask(message_of(1))["actions"][0, 0] == 1
        assert running.metrics()["connections"]["refused"] == {"full": 1}


def test_sockets_beyond_the_limit_are_dropped_and_the_robot_is_served():
    with running_server(server_settings=settings(max_sockets=4)) as running, running.openpi() as robot:
        held = [raw_socket(running.port) for _ in range(20)]
        try:
            assert robot.ask(message_of(5))["actions"][0, 0] == 5
            assert held[-1].recv(1) == b""  # dropped without a word
        finally:
            for one in held:
                one.close()


def test_an_unknown_path_is_not_found(quiet):
    with pytest.raises(InvalidStatus) as refused:
        quiet.connect("/admin")
    assert refused.value.response.status_code == 404


def test_a_foreign_web_page_is_refused_everywhere():
    access = Access(port=0, allowed_origins=("https://lab.example",))
    with running_server(access=access) as running:
        with pytest.raises(InvalidStatus) as refused:
            running.connect(origin="https://evil.example")
        assert refused.value.response.status_code == 403
        assert running.get("/metrics", {"Origin": "https://evil.example"})[0] == 403
        with running.connect(origin="https://lab.example") as welcome:
            welcome.recv(timeout=WAIT_S)


@pytest.fixture(scope="module")
def guarded():
    with running_server(access=Access(port=0, token=TOKEN)) as running:
        yield running


@pytest.mark.parametrize("scheme", ["Api-Key", "Bearer", "api-key"])
def test_the_right_token_opens(guarded, scheme):
    with guarded.connect(additional_headers={"Authorization": f"{scheme} {TOKEN}"}) as connection:
        connection.recv(timeout=WAIT_S)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/", {"Authorization": "Api-Key wrong"}),
        ("/", {"Authorization": TOKEN}),
        ("/", {"Authorization": f"Basic {TOKEN}"}),
        ("/", {"Authorization": f"Api-Key {TOKEN}x"}),
        ("/vla-eval", {}),
        (f"/?token={TOKEN.replace(' ', '+')}", {}),
    ],
)
def test_a_wrong_token_is_refused_before_anything_is_read(guarded, path, headers, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(InvalidStatus) as refused:
        guarded.connect(path, additional_headers=headers, logger=logging.getLogger("the test's own"))
    assert refused.value.response.status_code == 401
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("policies")]
    assert any("reason=token" in line for line in ours)
    assert not [line for line in ours if TOKEN in line or TOKEN.replace(" ", "+") in line]


def test_health_needs_no_token_but_metrics_do(guarded):
    assert guarded.get("/healthz") == (200, "OK\n")
    assert guarded.get("/readyz") == (200, "OK\n")
    assert guarded.get("/health")[1] == '{"status": "ok"}\n'
    assert guarded.get("/metrics")[0] == 401
    assert guarded.get("/metrics", {"Authorization": f"Bearer {TOKEN}"})[0] == 200


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
        pytest.raises(ValueError, match=r"\['top'\].*\['front'\]"),
        running_server(server_settings=settings(openpi_map=lambda spec: wrong)),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"host": "0.0.0.0"}, "token"),
        ({"host": "::"}, "token"),
        ({"host": "robot.local"}, "token"),
        ({"host": "0.0.0.0", "token": TOKEN}, "TLS"),
        ({"host": "0.0.0.0", "insecure_lan": True}, "token"),
        ({"token": "short"}, "16 characters"),
    ],
)
def test_an_open_door_is_refused(arguments, words):
    with pytest.raises(AccessError, match=words):
        Access(**arguments)


def test_a_closed_door_is_accepted_and_hides_its_token():
    access = Access(host="0.0.0.0", token=TOKEN, insecure_lan=True)
    assert TOKEN not in repr(access)
    assert Access(host="localhost").scheme == "ws"
    assert Access(host="127.3.2.1").scheme == "ws"


def test_tokens_come_from_the_environment_or_a_file(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    monkeypatch.setenv("SERVE_TOKEN_OF_THE_TEST", "from the environment")
    assert read_token(environment_variable=None, file=None) is None
    assert read_token(environment_variable=None, file=file) == TOKEN
    assert read_token(environment_variable="SERVE_TOKEN_OF_THE_TEST", file=file) == "from the environment"
    assert read_token(environment_variable="NOT_SET_ANYWHERE", file=file) == TOKEN
    file.write_text("\n")
    with pytest.raises(AccessError, match="empty"):
        read_token(environment_variable=None, file=file)


# ---- TLS; tests/golden/tls holds self-made certificates for 127.0.0.1: one to 2126, one that has expired


def trusting(name):
    return ssl.create_default_context(cafile=str(TLS / f"{name}.pem"))


def tls_access(name):
    return Access(port=0, tls=server_tls(certificate=TLS / f"{name}.pem", key=TLS / f"{name}.key"))


def test_tls_serves_those_who_trust_it_and_drops_plain_text():
    with running_server(access=tls_access("valid")) as running:
        with running.connect(ssl=trusting("valid")) as connection:
            assert decode(connection.recv(timeout=WAIT_S))["server"] == "vla-stack"
        with raw_socket(running.port) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert not plain.recv(4096).startswith(b"HTTP/1.1 1")
        with running.connect(ssl=trusting("valid")) as connection:
            connection.recv(timeout=WAIT_S)


def test_a_client_refuses_an_expired_certificate():
    with (
        running_server(access=tls_access("expired")) as running,
        pytest.raises(ssl.SSLCertVerificationError, match="expired"),
    ):
        running.connect(ssl=trusting("expired"))


def test_incomplete_tls_is_refused(tmp_path):
    with pytest.raises(AccessError, match="both"):
        server_tls(certificate=TLS / "valid.pem", key=None)
    with pytest.raises(AccessError, match="no file"):
        server_tls(certificate=TLS / "valid.pem", key=tmp_path / "none.key")
    with pytest.raises(AccessError, match="no certificate with its key"):
        server_tls(certificate=TLS / "valid.pem", key=TLS / "expired.key")
    assert server_tls(certificate=None, key=None) is None


# ---- a real bundle


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
