"""The vla-eval protocol on `/vla-eval`: hello, episodes, one action for each observation, errors."""

import io

import numpy as np
import pytest
from PIL import Image
from serving_fixtures import HORIZON, WAIT_S, FakePolicy, arm_spec, running_server, settings

from policies.serving.observation_map import ObservationMap
from policies.serving.wire import Dialect, decode, encode


class Harness:
    """A raw client of the protocol."""

    def __init__(self, connection):
        self.connection, self.seq = connection, 0

    def send(self, kind, payload):
        self.seq += 1
        message = {"type": kind, "payload": payload, "seq": self.seq, "timestamp": 1.0}
        self.connection.send(encode(message, dialect=Dialect.VLA_EVAL))

    def receive(self):
        return decode(self.connection.recv(timeout=WAIT_S), dialect=Dialect.VLA_EVAL)

    def ask(self, kind, payload):
        self.send(kind, payload)
        reply = self.receive()
        assert set(reply) == {"type", "payload", "seq", "timestamp"}
        assert isinstance(reply["timestamp"], float)
        return reply


def observation(number, *, image=None):
    image = np.full((8, 10, 3), number, np.uint8) if image is None else image
    return {
        "images": {"front": image},
        "state": np.array([number, 0.5], np.float32),
        "task_description": "lift the red cube",
    }


def counting_policy():
    """Answers with chunks whose rows tell the observation and the step."""

    def answer(observations):
        steps = np.arange(HORIZON, dtype=np.float32)
        first = [observation.state[0] for observation in observations]
        return np.stack([np.stack([np.full(HORIZON, one, np.float32), steps], axis=1) for one in first])

    return FakePolicy(answer=answer)


def served(policy=None, **more):
    return running_server(policy or counting_policy(), server_settings=settings(**more))


def test_benchmarks_are_told_what_to_send():
    wanted = {"send_state": True}
    with (
        served(vla_eval_observation_params=wanted) as running,
        running.connect("/vla-eval") as connection,
    ):
        hello = Harness(connection).ask("hello", {"harness_version": "0.8.0", "protocol_version": 1})
        assert hello["payload"]["observation_params"] == wanted


def test_an_episode_goes_through():
    with served() as running, running.connect("/vla-eval") as connection:
        harness = Harness(connection)
        hello = harness.ask("hello", {"harness_version": "0.8.0", "protocol_version": 1})
        assert (hello["type"], hello["seq"]) == ("hello", 1)
        assert hello["payload"]["protocol_version"] == 1
        assert {"harness_version", "model_server", "capabilities"} <= set(hello["payload"])
        harness.send("episode_start", {"task": {"name": "lift"}})
        for number in (3, 4):
            reply = harness.ask("observation", observation(number))
            assert (reply["type"], reply["seq"]) == ("action", harness.seq)
            np.testing.assert_array_equal(reply["payload"]["actions"], [number, 0])
        harness.send("episode_end", {"metrics": {"success": True}})
        assert running.metrics()["requests"]["episodes"] == 1


def test_a_chunk_is_handed_out_step_by_step_and_ends_with_its_episode():
    policy = counting_policy()
    with served(policy, vla_eval_execute_horizon=3) as running, running.connect("/vla-eval") as connection:
        harness = Harness(connection)
        harness.send("episode_start", {})
        actions = [harness.ask("observation", observation(i))["payload"]["actions"] for i in range(5)]
        harness.send("episode_start", {})
        actions.append(harness.ask("observation", observation(9))["payload"]["actions"])
    np.testing.assert_array_equal(actions, [[0, 0], [0, 1], [0, 2], [3, 0], [3, 1], [9, 0]])
    assert [seen.state[0] for seen in policy.seen] == [0, 3, 9]


def test_a_chunk_that_comes_after_its_episode_is_not_continued_in_the_next():
    policy = counting_policy()
    with served(policy, vla_eval_execute_horizon=3) as running, running.connect("/vla-eval") as connection:
        harness = Harness(connection)
        harness.send("episode_start", {})
        policy.gate.clear()
        harness.send("observation", observation(1))
        assert policy.entered.acquire(timeout=WAIT_S)
        harness.send("episode_start", {})
        harness.ask("hello", {"protocol_version": 1})  # by now the server knows of the new episode
        policy.gate.set()
        assert harness.receive()["payload"]["actions"][0] == 1
        np.testing.assert_array_equal(
            harness.ask("observation", observation(2))["payload"]["actions"], [2, 0]
        )


def test_a_benchmark_that_knows_chunks_gets_the_whole_chunk():
    with served(vla_eval_execute_horizon=0) as running, running.connect("/vla-eval") as connection:
        reply = Harness(connection).ask("observation", observation(3))
    assert reply["payload"]["actions"].shape == (HORIZON, 2)


def test_a_horizon_beyond_the_chunk_is_refused():
    with pytest.raises(ValueError, match="vla_eval_execute_horizon is 5"), served(vla_eval_execute_horizon=5):
        pass


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_compressed_images_are_unpacked_and_resized_if_the_map_says_so(image_format):
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 20, 3), 90, np.uint8)).save(buffer, format=image_format, quality=95)
    sent = {
        "__image__": True,
        "format": image_format.lower(),
        "data": buffer.getvalue(),
        "shape": [16, 20, 3],
    }
    stretched = ObservationMap(
        cameras={"front": "images.front"}, state=("state",), instruction="task_description", resize="stretch"
    )
    policy = FakePolicy()
    with (
        served(policy, vla_eval_map=lambda spec: stretched) as running,
        running.connect("/vla-eval") as connection,
    ):
        assert Harness(connection).ask("observation", observation(1, image=sent))["type"] == "action"
    (seen,) = policy.seen
    assert seen.images["front"].shape == (1, 8, 10, 3)
    assert np.abs(seen.images["front"].astype(int) - 90).max() <= 3


@pytest.mark.parametrize(
    ("kind", "payload", "code"),
    [
        ("hello", {"protocol_version": 2}, "protocol_version"),
        ("teleport", {}, "message"),
        (7, {}, "message"),
        ("observation", 7, "message"),
        ("observation", {"task_description": "lift"}, "missing_key"),
        ("observation", {**observation(1), "task_description": ""}, "instruction_empty"),
        ("observation", observation(1, image={"front": 1}), "image_type"),
        (
            "observation",
            observation(1, image={"__image__": True, "format": "png", "data": b"x", "shape": [8, 10, 3]}),
            "image_data",
        ),
        ("observation", observation(1, image=np.zeros((9, 9, 3), np.uint8)), "image_size"),
    ],
)
def test_an_error_has_a_code_and_leaves_the_connection_open(kind, payload, code):
    with served() as running, running.connect("/vla-eval") as connection:
        harness = Harness(connection)
        error = harness.ask(kind, payload)
        assert error["type"] == "error"
        assert error["payload"]["code"] == code
        assert error["payload"]["error"].startswith(f"{code}: ")
        assert harness.ask("observation", observation(5))["payload"]["actions"][0] == 5


def test_openpis_spelling_of_arrays_is_refused_here():
    with served() as running, running.connect("/vla-eval") as connection:
        harness = Harness(connection)
        message = {"type": "observation", "payload": observation(1), "seq": 1, "timestamp": 1.0}
        connection.send(encode(message, dialect=Dialect.OPENPI))
        assert harness.receive()["payload"]["code"] == "dialect"


def test_both_protocols_are_served_at_once():
    with served() as running, running.openpi() as robot, running.connect("/vla-eval") as connection:
        harness = Harness(connection)
        assert harness.ask("observation", observation(6))["payload"]["actions"][0] == 6
        assert robot.metadata["robot_spec"] == arm_spec().to_json()
