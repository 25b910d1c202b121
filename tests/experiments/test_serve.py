"""`python -m experiments.serve`: it tells how to connect, serves, and ends well; its maps are complete."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from program_fixtures import composed, read_until

from experiments.serve import access_of, load_bundle, serve, settings_of
from policies.exported import BundlePolicy
from policies.serving.access import AccessError
from policies.serving.client import RemotePolicy
from policies.serving.observation_map import ObservationMap

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "tests" / "golden" / "bundle_v1"
MAPS = sorted(path.stem for path in (ROOT / "conf" / "observation_map").glob("*.yaml"))


def serve_run(*overrides):
    return composed("serve", f"bundle={BUNDLE}", *overrides)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@contextlib.contextmanager
def program(*arguments):
    """The program as a user starts it, without a token of the user's own."""
    environment = {key: value for key, value in os.environ.items() if key != "VLA_SERVE_TOKEN"}
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.serve", f"bundle={BUNDLE}", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_tells_how_to_connect_serves_and_ends_with_code_0(number, tmp_path):
    port = free_port()
    with program(f"port={port}", f"out_dir={tmp_path}", "status_every_s=0.05") as process:
        printed = read_until(process, "no request yet")
        for words in (f"ws://127.0.0.1:{port}/vla-eval", "'observation/wrist'", "text at 'prompt'"):
            assert words in printed
        policy = BundlePolicy.load(BUNDLE)
        assert policy.bundle_id in printed
        with RemotePolicy.open(f"ws://127.0.0.1:{port}", expected_policy_id=policy.bundle_id) as remote:
            observation = policy._bundle.golden.observations[0]
            np.testing.assert_array_equal(remote.predict([observation]), policy.predict([observation]))
            assert "request p50" in read_until(process, "1 answered")
        process.send_signal(number)
        assert "stopped" in read_until(process, "stopped")
        assert process.wait(timeout=60) == 0


def test_its_log_is_bounded_however_many_clients_misbehave(tmp_path):
    port = free_port()
    with program(f"port={port}", f"out_dir={tmp_path}", "status_every_s=0.05") as process:
        read_until(process, "no request yet")
        for _ in range(700):
            with socket.create_connection(("127.0.0.1", port)) as one:
                one.sendall(b"GET /nothing HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
                while one.recv(4096):  # until it is refused, or dropped
                    pass
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    lines = (tmp_path / "serve.log").read_text().splitlines()
    refused = sum("reason=path" in line for line in lines)
    assert 100 < refused < 500
    assert len(lines) < 500


def test_its_log_file_rotates():
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("serve", ["bundle=b"], return_hydra_config=True)
    handler = config.hydra.job_logging.handlers.file
    assert handler["class"] == "experiments.config.log_file.LogFile"
    assert handler.maxBytes * (handler.backupCount + 1) <= 20_000_000


def test_an_open_door_ends_with_a_message(tmp_path):
    with program("port=0", f"out_dir={tmp_path}", "host=0.0.0.0") as process:
        printed, _ = process.communicate(timeout=150)
    assert process.returncode == 1
    assert "there is no token" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("tls_cert=a.pem",), "both tls_cert and tls_key"),
        (("openpi_map.resize=crop",), "openpi_map.resize is .crop.; choose from refuse, pad, stretch"),
        (("+openpi_map.cameras.top=image",), r"\['top'\]"),
        (("server.vla_eval_execute_horizon=5",), "vla_eval_execute_horizon is 5"),
        (("server.limits.max_bytes=0",), "server.limits.max_bytes is 0"),
        (("bundle=tests",), "no usable bundle"),
        (("server.max_connections=0",), "server.max_connections is 0"),
        (("server.max_connections=1000000000",), "server.max_connections is 1"),
        (("server.session.send_timeout_s=1e9",), "server.session.send_timeout_s is 1"),
        (("server.limits.max_depth=1000000000",), "server.limits.max_depth is 1"),
        (("server.max_sockets=0",), "server.max_sockets is 0"),
        (("server.open_timeout_s=0",), "server.open_timeout_s is 0"),
        (("server.session.request_timeout_s=0",), "server.session.request_timeout_s is 0"),
        (("server.session.request_timeout_s=nan",), "server.session.request_timeout_s is nan"),
        (("server.session.request_timeout_s=inf",), "server.session.request_timeout_s is inf"),
        (("server.session.idle_timeout_s=-1",), "server.session.idle_timeout_s is -1"),
        (("server.session.ping_timeout_s=0",), "server.session.ping_timeout_s is 0"),
        (("server.limits.max_bytes=100000000000000000000",), "server.limits.max_bytes"),
        (("status_every_s=0",), "status_every_s is 0"),
        (("status_every_s=nan",), "status_every_s is nan"),
        (("port=-1",), "port is -1"),
        (("port=65536",), "port is 65536"),
    ],
)
def test_a_wrong_configuration_ends_with_a_message(overrides, words):
    with pytest.raises(ValueError, match=words):
        asyncio.run(serve(serve_run("port=0", *overrides)))


def test_a_taken_port_ends_with_a_message(tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        program(f"port={taken.getsockname()[1]}", f"out_dir={tmp_path}") as process,
    ):
        printed, _ = process.communicate(timeout=150)
    assert process.returncode == 1
    assert "address already in use" in printed


@pytest.mark.parametrize("name", MAPS)
def test_every_map_composes(name):
    run = serve_run(f"observation_map@openpi_map={name}")
    spec = BundlePolicy.load(BUNDLE, verify=False).robot_spec
    made = settings_of(run).openpi_map(spec)
    if name == "bundle":
        assert made == ObservationMap.openpi(spec)
    if name != "aloha":  # four cameras of its own
        made.require_fitting(spec, name="openpi_map")
    assert made.state
    assert made.instruction == "prompt"


def test_single_keys_can_be_given_on_the_command_line():
    run = serve_run(
        "+openpi_map.cameras={exterior: a, wrist: b.c}", "openpi_map.state=[s, t]", "openpi_map.layout=chw"
    )
    spec = BundlePolicy.load(BUNDLE, verify=False).robot_spec
    made = settings_of(run).openpi_map(spec)
    assert made.cameras == {"exterior": "a", "wrist": "b.c"}
    assert (made.state, made.instruction, made.layout) == (("s", "t"), "prompt", "chw")


def test_a_token_and_tls_open_the_network(monkeypatch):
    monkeypatch.setenv("VLA_SERVE_TOKEN", "a token of some length")
    tls = ROOT / "tests" / "golden" / "tls"
    access = access_of(serve_run("host=0.0.0.0", f"tls_cert={tls}/valid.pem", f"tls_key={tls}/valid.key"))
    assert access.scheme == "wss"
    assert access_of(serve_run("host=0.0.0.0", "insecure_lan=true")).scheme == "ws"
    with pytest.raises(AccessError, match="TLS"):
        access_of(serve_run("host=0.0.0.0"))


@pytest.mark.parametrize(
    "limit", ["max_bytes=1000", "max_elements=10", "max_dimensions=1", "max_map_length=2"]
)
def test_limits_that_refuse_every_observation_are_refused(limit):
    with pytest.raises(ValueError, match=r"^server\.limits would refuse every observation of this bundle"):
        load_bundle(serve_run(f"server.limits.{limit}"))


def test_the_usual_limits_let_observations_through():
    assert load_bundle(serve_run()).policy_id
