"""The remote policy and servers that fail: it gives up in time, says why, and finds the next one."""

import contextlib
import http.server
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
from serving_fixtures import (
    TOKEN,
    WAIT_S,
    FakePolicy,
    observation_of,
    opened,
    running_server,
    settings,
)
from websockets.sync.server import serve

from policies.serving import client
from policies.serving.access import Access, server_tls
from policies.serving.client import PolicyUnavailable, RemotePolicy
from policies.serving.server import ServedPolicy

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = Path(__file__).parents[2]


def test_a_hanging_policy_is_unavailable_by_the_clients_deadline():
    policy = FakePolicy()
    with running_server(policy) as running, opened(running, timeout_s=0.2) as remote:
        policy.gate.clear()
        with pytest.raises(PolicyUnavailable) as caught:
            remote.predict([observation_of(1)])
        assert caught.value.code == "timeout"
        with pytest.raises(PolicyUnavailable) as caught:
            remote.predict([observation_of(1)])
        assert caught.value.code == "closed"
        policy.gate.set()
        remote._timeout_s = WAIT_S  # a busy machine
        remote.reconnect(within_s=WAIT_S)
        assert remote.predict([observation_of(2)])[0, 0, 0] == 2


def test_a_silent_greeting_is_a_timeout():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(PolicyUnavailable) as caught:
            RemotePolicy.open(url, open_timeout_s=0.2)
    assert caught.value.code == "timeout"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def test_a_refused_connection_is_retried_with_growing_pauses_until_time_is_up():
    with running_server() as running:
        remote = opened(running)
    now, pauses = [0.0], []

    def sleep(seconds):
        pauses.append(seconds)
        now[0] += seconds

    remote._clock, remote._sleep = (lambda: now[0]), sleep
    with pytest.raises(PolicyUnavailable) as caught:
        remote.reconnect(within_s=60.0)
    assert caught.value.code == "unreachable"
    assert pauses[:5] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert set(pauses[5:]) == {2.0}
    assert 57.0 <= now[0] <= 60.0
    assert not remote.connected


@pytest.mark.parametrize("shakes_hands", [False, True])
def test_a_reconnect_ends_in_time_although_the_server_takes_the_connection_and_says_nothing(shakes_hands):
    with running_server() as running:
        remote = opened(running)
    remote._open_timeout_s = 30.0
    with contextlib.ExitStack() as stack:
        if shakes_hands:
            silent = stack.enter_context(serve(lambda connection: connection.recv(), "127.0.0.1", 0))
            threading.Thread(target=silent.serve_forever, daemon=True).start()
            port = silent.socket.getsockname()[1]
        else:
            port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        remote._url = f"ws://127.0.0.1:{port}"
        start = time.monotonic()
        with pytest.raises(PolicyUnavailable) as caught:
            remote.reconnect(within_s=0.2)
        assert time.monotonic() - start < 0.2 + 5.0  # a busy machine
    assert caught.value.code == "timeout"
    assert not remote.connected


def test_a_client_that_comes_first_waits_for_its_server():
    port, now, running = free_port(), [0.0], []
    with contextlib.ExitStack() as stack:

        def sleep(seconds):
            now[0] += seconds
            if now[0] > 60.0 and not running:
                running.append(stack.enter_context(running_server(access=Access(port=port))))

        remote = RemotePolicy.open(
            f"ws://127.0.0.1:{port}", within_s=90.0, timeout_s=WAIT_S, clock=lambda: now[0], sleep=sleep
        )
        with remote:
            assert 60.0 < now[0] < 63.0
            assert remote.predict([observation_of(2)])[0, 0, 0] == 2


def test_a_wrong_token_is_not_tried_again():
    with running_server(access=Access(port=0, token=TOKEN)) as running:
        with pytest.raises(PolicyUnavailable) as caught:
            opened(running, token="wrong", within_s=60.0, sleep=lambda seconds: pytest.fail("it waited"))
        assert caught.value.code == "token"


def test_nobody_there_is_unreachable():
    with pytest.raises(PolicyUnavailable) as caught:
        RemotePolicy.open(f"ws://127.0.0.1:{free_port()}")
    assert caught.value.code == "unreachable"


def never_waits(seconds):
    pytest.fail("it waited")


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("robot.local:8000", "address", "write ws://robot.local:8000"),
        ("127.0.0.1:8000", "address", "write ws://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/x", "address", "write ws://127.0.0.1:8000"),
        ("https://127.0.0.1:8000", "address", "write wss://127.0.0.1:8000"),
        ("ws://", "address", "write ws://host:port"),
        ("ws://127.0.0.1:80000", "address", "Port out of range"),
        ("ws://no-such-host.invalid:8000", "unknown_host", "host cannot be found"),
    ],
)
def test_an_address_that_is_wrong_for_good_is_reported_at_once(monkeypatch, url, code, words):
    def fail(*arguments, **settings):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(PolicyUnavailable, match=words) as caught:
        RemotePolicy.open(url, within_s=60.0, sleep=never_waits)
    assert caught.value.code == code


@pytest.mark.parametrize("path", ["/", "/elsewhere"])
def test_another_program_is_reported_at_once(path):
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(PolicyUnavailable, match="another program") as caught:
            RemotePolicy.open(
                f"ws://127.0.0.1:{other.server_port}{path}",
                open_timeout_s=WAIT_S,
                within_s=60.0,
                sleep=never_waits,
            )
        other.shutdown()
    assert caught.value.code == "not_a_server"


def test_a_program_that_speaks_no_http_is_reported_at_once():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet():
            peer, _ = other.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                peer.recv(4096)

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(PolicyUnavailable) as caught:
            RemotePolicy.open(
                f"ws://127.0.0.1:{other.getsockname()[1]}",
                open_timeout_s=WAIT_S,
                within_s=60.0,
                sleep=never_waits,
            )
    assert caught.value.code == "not_a_server"


def test_a_connection_that_is_reset_in_the_handshake_may_pass(monkeypatch):
    def reset(*arguments, **settings):
        raise AssertionError  # as websockets 17.4 does then, now and again

    monkeypatch.setattr(client, "connect", reset)
    with pytest.raises(PolicyUnavailable, match="ended at once") as caught:
        RemotePolicy.open("ws://127.0.0.1:1")
    assert caught.value.code == "unreachable"


def test_a_path_that_our_server_does_not_have_is_reported_at_once():
    with running_server() as running, pytest.raises(PolicyUnavailable, match="status 404") as caught:
        RemotePolicy.open(running.url("/policy"), open_timeout_s=WAIT_S, within_s=60.0, sleep=never_waits)
    assert caught.value.code == "not_a_server"


def test_a_host_that_was_known_is_looked_for_again(monkeypatch):
    with running_server() as running, opened(running) as remote:
        remote.close()
        find, failures = socket.getaddrinfo, [socket.gaierror(socket.EAI_NONAME, "not known")] * 2

        def find_in_the_end(*arguments, **settings):
            if failures:
                raise failures.pop()
            return find(*arguments, **settings)

        monkeypatch.setattr(socket, "getaddrinfo", find_in_the_end)
        remote.reconnect(within_s=WAIT_S)
        assert remote.predict([observation_of(2)])[0, 0, 0] == 2


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f"{TOKEN}\r\nX-More: 1", f"{TOKEN}\u00e9", ""])
def test_a_token_that_no_header_carries_is_refused_without_being_shown(token, caplog):
    with pytest.raises(PolicyUnavailable, match=f"the token \\({len(token)} characters") as caught:
        RemotePolicy.open("ws://127.0.0.1:1", token=token, within_s=60.0, sleep=never_waits)
    assert caught.value.code == "token"
    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert TOKEN not in told


def test_what_an_address_hides_is_in_no_message():
    with pytest.raises(PolicyUnavailable) as caught:
        RemotePolicy.open(f"ws://me:{TOKEN[:7]}@127.0.0.1:{free_port()}/?token={TOKEN[:7]}")
    assert TOKEN[:7] not in str(caught.value)


def test_a_token_on_an_open_network_is_warned_of(caplog):
    with pytest.raises(PolicyUnavailable):
        RemotePolicy.open("ws://192.0.2.1:8000", token=TOKEN, open_timeout_s=0.05)
    assert "the token goes to ws://192.0.2.1:8000 in plain text" in caplog.text
    assert TOKEN not in caplog.text


def test_the_authority_in_ssl_cert_file_is_trusted(monkeypatch):
    certificate, key = GOLDEN / "tls" / "valid.pem", GOLDEN / "tls" / "valid.key"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    access = Access(port=0, tls=server_tls(certificate=certificate, key=key))
    with running_server(access=access) as running, opened(running) as remote:
        assert remote.predict([observation_of(2)])[0, 0, 0] == 2


def test_after_a_reconnect_the_same_policy_has_to_answer():
    with running_server() as running, opened(running) as remote:
        remote.close()
        remote.reconnect(within_s=WAIT_S)
        assert remote.predict([observation_of(1)])[0, 0, 0] == 1
        running.server._protocols = {
            "/": lambda: running.server._speakers(ServedPolicy(policy=FakePolicy(), policy_id="c" * 64))[
                "/"
            ]()
        }
        with pytest.raises(PolicyUnavailable) as caught:
            remote.reconnect(within_s=WAIT_S)
        assert caught.value.code == "changed"
        assert not remote.connected


def test_tokens_and_full_servers_are_told_apart():
    with running_server(
        access=Access(port=0, token=TOKEN), server_settings=settings(max_connections=1)
    ) as running:
        with pytest.raises(PolicyUnavailable) as caught:
            opened(running, token="wrong")
        assert caught.value.code == "token"
        with opened(running, token=TOKEN) as first:
            with pytest.raises(PolicyUnavailable) as caught:
                opened(running, token=TOKEN)
            assert caught.value.code == "busy"
            assert first.predict([observation_of(2)])[0, 0, 0] == 2


@pytest.mark.parametrize(("name", "works"), [("valid", True), ("expired", False)])
def test_tls_certificates_are_checked(name, works):
    tls = server_tls(certificate=GOLDEN / "tls" / f"{name}.pem", key=GOLDEN / "tls" / f"{name}.key")
    trusting = ssl.create_default_context(cafile=str(GOLDEN / "tls" / f"{name}.pem"))
    with running_server(access=Access(port=0, tls=tls)) as running:
        if works:
            with opened(running, tls=trusting) as remote:
                assert remote.predict([observation_of(2)])[0, 0, 0] == 2
        else:
            with pytest.raises(PolicyUnavailable, match="expired"):
                opened(running, tls=trusting)
        with pytest.raises(PolicyUnavailable):
            opened(running)  # the system does not know this authority


SERVER_PROGRAM = """
import asyncio, sys, threading
sys.path.insert(0, {tests!r})
from serving_fixtures import FakePolicy
from policies.serving.server import PolicyServer, ServedPolicy, ServerSettings
from policies.serving.session import SessionSettings
from policies.serving.access import Access
server = PolicyServer(
    load=lambda: ServedPolicy(policy=FakePolicy(), policy_id="a" * 64),
    access=Access(port={port}),
    settings=ServerSettings(session=SessionSettings(request_timeout_s=100.0)),
)
asyncio.run(server.run(asyncio.Event(), on_ready=lambda: print("ready", flush=True)))
"""


@contextlib.contextmanager
def server_process(port):
    program = SERVER_PROGRAM.format(tests=str(Path(__file__).parent), port=port)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_killed_server_is_noticed_and_its_successor_is_found():
    port = free_port()
    with server_process(port) as process:
        remote = RemotePolicy.open(f"ws://127.0.0.1:{port}", timeout_s=WAIT_S)
        assert remote.predict([observation_of(1)])[0, 0, 0] == 1
        process.kill()
        process.wait()
        with pytest.raises(PolicyUnavailable) as caught:
            remote.predict([observation_of(2)])
        assert caught.value.code == "lost"
    with server_process(port):
        with pytest.raises(PolicyUnavailable) as caught:
            remote.predict([observation_of(3)])  # never by itself
        assert caught.value.code == "closed"
        remote.reconnect(within_s=WAIT_S)
        assert remote.predict([observation_of(4)])[0, 0, 0] == 4
        remote.close()


@pytest.mark.parametrize("side", [8, 4000])  # pixels: far less, and far more than the kernel's buffers hold
def test_a_stopped_server_holds_nobody(side):
    port = free_port()
    observation = observation_of(1)
    object.__setattr__(observation, "images", {"front": np.zeros((1, side, side, 3), np.uint8)})
    with server_process(port) as process:
        remote = RemotePolicy.open(f"ws://127.0.0.1:{port}", timeout_s=0.3)
        os.kill(process.pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(PolicyUnavailable):
            remote.predict([observation])
        assert time.monotonic() - start < 0.3 + 0.5 + 5.0  # its deadline, the farewell, a busy machine
        assert not remote.connected
        os.kill(process.pid, signal.SIGCONT)
        remote._timeout_s = WAIT_S  # a busy machine
        remote.reconnect(within_s=WAIT_S)
        assert remote.predict([observation_of(2)])[0, 0, 0] == 2
        remote.close()
