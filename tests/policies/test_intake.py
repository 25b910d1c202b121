"""How much a server holds for its clients: large messages wait their turn, and nothing is kept afterward."""

import contextlib
import gc
import threading
import time
import tracemalloc

import numpy as np
import pytest
from serving_fixtures import (
    WAIT_S,
    FakePolicy,
    expected_actions,
    message_of,
    observation_of,
    raw_socket,
    running_server,
    settings,
)
from websockets.exceptions import ConnectionClosed

from policies.serving import intake, session
from policies.serving.intake import NUM_TURNS, SMALL_BYTES, MeasuredConnection
from policies.serving.session import SessionSettings

LARGE = 6 << 20
READ_AT_ONCE = 256 << 10  # by asyncio, from one socket


@pytest.fixture
def connections(monkeypatch):
    """All connections that a server has."""
    found = []
    make = MeasuredConnection.connection_made

    def remember(connection, transport):
        found.append(connection)
        make(connection, transport)

    monkeypatch.setattr(MeasuredConnection, "connection_made", remember)
    return found


def header(num_bytes):
    """The beginning of a masked binary frame; the mask is zero."""
    return b"\x82\xff" + num_bytes.to_bytes(8, "big") + b"\0\0\0\0"


def sent_in_the_background(connection, data):
    def send():
        with contextlib.suppress(OSError):  # cut off
            connection.socket.sendall(data)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def until(condition):
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def held(connections):
    return [len(one.protocol.reader.buffer) for one in connections]


def test_large_messages_that_never_end_take_turns_and_the_robot_is_served(connections):
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(running_server())
        robot = stack.enter_context(running.openpi())
        others = [stack.enter_context(running.openpi()) for _ in range(8)]
        for other in others:
            sent_in_the_background(other.connection, header(LARGE) + b"\x80" * (LARGE - 1))
        until(lambda: sum(size > SMALL_BYTES for size in held(connections)) >= 8)
        time.sleep(0.3)
        large = sorted(held(connections))[-NUM_TURNS - 1]
        assert large <= SMALL_BYTES + READ_AT_ONCE  # of those without a turn, who has most
        assert sum(one.is_held_back for one in connections) == len(others) - NUM_TURNS
        for number in range(3):
            np.testing.assert_array_equal(
                robot.ask(message_of(number))["actions"], expected_actions(observation_of(number))
            )
        for other in others:
            other.connection.socket.close()


def test_who_keeps_others_waiting_with_half_a_message_is_cut_off(monkeypatch, connections):
    monkeypatch.setattr(intake, "TURN_S", 0.3)
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(running_server())
        slow = [stack.enter_context(running.openpi()) for _ in range(NUM_TURNS)]
        for one in slow:
            sent_in_the_background(one.connection, header(LARGE) + b"\x80" * (LARGE - 1))
        until(lambda: sum(size == LARGE - 1 for size in held(connections)) == NUM_TURNS)
        time.sleep(1.0)
        assert not any(one.transport.is_closing() for one in connections)  # nobody waits yet
        waiting = stack.enter_context(running.openpi())
        assert waiting.error_code(b"\x80" * LARGE) == "trailing"
        closed = 0
        for one in slow:
            with contextlib.suppress(ConnectionClosed):
                one.connection.ping()
                one.connection.recv(timeout=2.0)
            closed += one.connection.state.name == "CLOSED"
        assert closed >= 1


@pytest.mark.parametrize(
    "piece", [b"\x80" * LARGE, b"\x81\xa1a\xc6" + LARGE.to_bytes(4, "big") + bytes(LARGE)]
)
def test_nothing_of_a_message_is_kept_once_it_is_answered(piece):
    with running_server() as running, running.openpi() as client:
        assert client.error_code(b"\x80" * 10) == "trailing"
        gc.collect()
        gc.disable()  # what is in a cycle stays
        tracemalloc.start()
        try:
            for _ in range(3):
                assert "error" in client.ask(piece)
            until(lambda: tracemalloc.get_traced_memory()[0] < LARGE // 4)
        finally:
            tracemalloc.stop()
            gc.enable()


def test_messages_in_small_frames_count_as_one():
    def frames():
        for number in range(60):
            yield bytes([0x80]) * 100_000 if number else b"\x80" * 10

    with running_server() as running, running.openpi() as client:
        client.connection.send(frames())
        assert client.receive()["error"]["code"] == "trailing"
        assert client.ask(message_of(3))["actions"][0, 0] == 3


HANDSHAKE = b"""GET / HTTP/1.1\r
Host: 127.0.0.1\r
Upgrade: websocket\r
Connection: Upgrade\r
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r
Sec-WebSocket-Version: 13\r
\r
"""


def test_a_client_that_dies_silently_frees_the_only_place(caplog):
    caplog.set_level("WARNING")
    only_one = settings(max_connections=1, idle_timeout_s=10 * WAIT_S, ping_timeout_s=0.3)
    with running_server(server_settings=only_one) as running, raw_socket(running.port) as dead:
        dead.sendall(HANDSHAKE)
        assert dead.recv(1 << 16).startswith(b"HTTP/1.1 101")
        until(lambda: running.server.metrics.connections_open == 1)
        until(lambda: running.server.metrics.connections_open == 0)
        with running.openpi() as successor:
            assert successor.ask(message_of(4))["actions"][0, 0] == 4
    assert "reason=it answers no ping" in caplog.text


def test_the_only_place_is_free_within_20_seconds():
    assert session.PING_EVERY_S + SessionSettings().ping_timeout_s < 20.0


def test_a_live_client_keeps_the_only_place_while_it_waits():
    policy = FakePolicy()
    only_one = settings(max_connections=1, ping_timeout_s=2.0)
    with running_server(policy, server_settings=only_one) as running, running.openpi() as client:
        policy.gate.clear()
        client.send(message_of(1))
        time.sleep(5.0)
        policy.gate.set()
        assert client.receive()["actions"][0, 0] == 1
