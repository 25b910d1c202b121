"""Who may connect to the server: limits of connections, tokens, origins, TLS.

tests/golden/tls holds self-made certificates for 127.0.0.1: one to 2126, one that has
expired. locked.key is the first one's, behind the passphrase `secret`.
"""

import logging
import ssl
from pathlib import Path

import pytest
from serving_fixtures import (
    TOKEN,
    WAIT_S,
    message_of,
    raw_socket,
    running_server,
    settings,
)
from websockets.exceptions import InvalidStatus

from policies.serving.access import Access, AccessError, read_token, server_tls
from policies.serving.wire import decode

GOLDEN = Path(__file__).parents[1] / "golden"
TLS = GOLDEN / "tls"


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
    patient = settings(max_sockets=4, open_timeout_s=10 * WAIT_S)  # so that only the limit drops anybody
    with running_server(server_settings=patient) as running, running.openpi() as robot:
        held = [raw_socket(running.port) for _ in range(20)]
        try:
            assert robot.ask(message_of(5))["actions"][0, 0] == 5
            assert held[-1].recv(1) == b""  # dropped without a word
        finally:
            for one in held:
                one.close()


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


def test_a_token_of_two_lines_is_refused():
    with pytest.raises(AccessError, match="no line of ASCII text") as caught:
        Access(token=f"{TOKEN}\n{TOKEN}")
    assert TOKEN not in str(caught.value)


def test_a_key_that_asks_for_a_passphrase_is_refused_and_nobody_is_asked():
    with pytest.raises(AccessError, match=r"locked\.key asks for a passphrase; store it without"):
        server_tls(certificate=TLS / "valid.pem", key=TLS / "locked.key")


def test_incomplete_tls_is_refused(tmp_path):
    with pytest.raises(AccessError, match="both"):
        server_tls(certificate=TLS / "valid.pem", key=None)
    with pytest.raises(AccessError, match="no file"):
        server_tls(certificate=TLS / "valid.pem", key=tmp_path / "none.key")
    with pytest.raises(AccessError, match="no certificate with its key"):
        server_tls(certificate=TLS / "valid.pem", key=TLS / "expired.key")
    assert server_tls(certificate=None, key=None) is None
