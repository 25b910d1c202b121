"""The map from a client's keys: nested, joined, channels first, other sizes; and the way back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_fixtures import arm_spec, observation_of

from policies.serving.observation_map import ObservationMap, RequestError
from policies.serving.wire import decode, encode
from vla.interface import Observation
from vla.spec import CameraSpec

SPEC = arm_spec()


def mapped(message, observation_map, *, spec=SPEC, frame_offsets=(0,)):
    return observation_map.to_observation(message, spec=spec, frame_offsets=frame_offsets, stamp=1.5)


def a_map(**changes):
    fields = {"cameras": {"front": "image"}, "state": ("state",), "instruction": "prompt"}
    return ObservationMap(**{**fields, **changes})


def a_message(**changes):
    image = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return {"image": image, "state": np.array([0.1, 0.2]), "prompt": "lift", **changes}


def code(message, observation_map=None, **more):
    with pytest.raises(RequestError) as caught:
        mapped(message, observation_map or a_map(), **more)
    return caught.value.code


def test_alohas_nested_images_with_channels_first():
    message = a_message()
    image = message.pop("image")
    message["images"] = {"cam_high": np.ascontiguousarray(np.moveaxis(image, -1, 0))}
    observation = mapped(message, a_map(cameras={"front": "images.cam_high"}, layout="chw"))
    np.testing.assert_array_equal(observation.images["front"][0], image)
    assert observation.images["front"].flags.c_contiguous
    assert observation.stamp == 1.5
    assert observation.committed.shape == (0, 2)


def test_droids_state_in_parts_is_joined_in_order():
    message = a_message(joints=np.array([0.25]), gripper=0.5)
    observation = mapped(message, a_map(state=("joints", "gripper")))
    np.testing.assert_array_equal(observation.state, np.float32([0.25, 0.5]))
    assert observation.state.dtype == np.float32
    observation = mapped({**message, "gripper": np.float64(0.5)}, a_map(state=("gripper", "joints")))
    np.testing.assert_array_equal(observation.state, np.float32([0.5, 0.25]))


def test_a_key_that_itself_has_dots_comes_before_the_path():
    assert mapped(a_message(**{"a.b": np.zeros(2)}), a_map(state=("a.b",))).state.shape == (2,)


@pytest.mark.parametrize("mode", ["stretch", "pad"])
def test_other_sizes_are_resized_only_if_the_map_says_so(mode):
    message = a_message(image=np.full((32, 20, 3), 100, np.uint8))
    assert code(message) == "image_size"
    resized = mapped(message, a_map(resize=mode)).images["front"]
    assert resized.shape == (1, 8, 10, 3)
    assert (resized[0, :, 4] == 100).all()
    assert (resized[0, 0, 0, 0] == 100) == (mode == "stretch")


def test_one_image_for_several_frames_is_refused_or_repeated():
    message = a_message()
    assert code(message, frame_offsets=(4, 0)) == "image_frames"
    frames = mapped(message, a_map(missing_frames="repeat"), frame_offsets=(4, 0)).images["front"]
    np.testing.assert_array_equal(frames, np.stack([message["image"]] * 2))
    several = a_message(image=np.stack([message["image"]] * 3))
    assert code(several, a_map(missing_frames="repeat"), frame_offsets=(4, 0)) == "image_frames"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"image": [[0]]}, "image_type"),
        ({"image": np.zeros((8, 10, 4), np.uint8)}, "image_shape"),
        ({"image": np.zeros((8, 10), np.uint8)}, "image_shape"),
        ({"image": np.zeros((1, 1, 8, 10, 3), np.uint8)}, "image_shape"),
        ({"state": np.zeros((1, 2))}, "state_type"),
        ({"state": [0.0, "left"]}, "state_type"),
        ({"state": [0.0, True]}, "state_type"),
        ({"state": True}, "state_type"),
        ({"state": np.array([np.inf, 0])}, "state_not_finite"),
        ({"state": 0.5}, "state_shape"),
        ({"prompt": None}, "instruction_type"),
        ({"prompt": "a\nb"}, "instruction_control"),
        ({"prompt": "ü" * 600}, "instruction_too_long"),
        ({"committed": 3}, "committed_shape"),
    ],
)
def test_what_does_not_fit_is_refused(changes, wanted):
    assert code(a_message(**changes)) == wanted


def test_a_missing_key_lists_what_came():
    with pytest.raises(RequestError, match=r"no 'a\.b'.*'image', 'prompt', 'state'"):
        mapped(a_message(), a_map(state=("a.b",)))


def test_a_map_with_impossible_choices_is_refused():
    for changes in ({"layout": "cwh"}, {"resize": "crop"}, {"missing_frames": "zeros"}):
        with pytest.raises(ValueError, match=f"observation_map.{next(iter(changes))} is"):
            a_map(**changes)
    with pytest.raises(ValueError, match="state and instruction need keys"):
        a_map(state=()).require_fitting(SPEC, name="openpi_map")
    with pytest.raises(ValueError, match=r"\['front'\].*\['side'\].*'\+openpi_map\.cameras="):
        a_map(cameras={"side": "image"}).require_fitting(SPEC, name="openpi_map")
    a_map(cameras={"side": "image", "front": "other"}).require_fitting(SPEC, name="openpi_map")


@pytest.mark.parametrize("state", [[1, 2.5], (1.0, 2.5), np.array([1, 2], np.int64), [np.float32(1), 2.5]])
def test_a_state_of_integers_or_in_a_list_is_taken(state):
    made = mapped(a_message(state=state), a_map())
    np.testing.assert_array_equal(made.state, np.asarray(state, np.float32))


@settings(max_examples=30)
@given(
    layout=st.sampled_from(["hwc", "chw"]),
    keys=st.sampled_from(
        [("image", "state", "prompt"), ("o.images.cam", "o.state", "o.task"), ("a/b", "a/c", "d")]
    ),
    num_frames=st.integers(1, 3),
    num_committed=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_a_request_becomes_the_observation_that_it_was(layout, keys, num_frames, num_committed, seed):
    rng = np.random.default_rng(seed)
    observation_map = a_map(cameras={"front": keys[0]}, state=(keys[1],), instruction=keys[2], layout=layout)
    observation = Observation(
        images={"front": rng.integers(0, 256, (num_frames, 8, 10, 3), dtype=np.uint8)},
        state=rng.normal(size=2).astype(np.float32),
        instruction="hebe den würfel",
        committed=rng.normal(size=(num_committed, 2)).astype(np.float32),
        stamp=1.5,
    )
    message = decode(encode(observation_map.to_request(observation)))
    offsets = tuple(range(num_frames))[::-1]
    back = mapped(message, ObservationMap.from_json(observation_map.to_json()), frame_offsets=offsets)
    np.testing.assert_array_equal(back.images["front"], observation.images["front"])
    np.testing.assert_array_equal(back.state, observation.state)
    np.testing.assert_array_equal(back.committed, observation.committed)
    assert (back.instruction, back.stamp) == (observation.instruction, observation.stamp)


def test_a_request_cannot_be_made_without_its_cameras():
    observation_map = a_map(cameras={"front": "a", "wrist": "b"})
    with pytest.raises(ValueError, match="wrist"):
        observation_map.to_request(observation_of(1))
    with pytest.raises(ValueError, match="in parts"):
        a_map(state=("a", "b")).to_request(observation_of(1))
    two = arm_spec(
        cameras=(CameraSpec(name="front", height=8, width=10), CameraSpec(name="wrist", height=8, width=10))
    )
    assert ObservationMap.vla_eval(two).cameras == {"front": "images.front", "wrist": "images.wrist"}
