"""A training batch holds what the policy would get at the same moment, array for array."""

import dataclasses

import numpy as np
import pytest
from data_fixtures import make_episodes, make_spec, picture, write_episodes

from vla.data.demonstrations import DemonstrationSource
from vla.data.windows import open_windows
from vla.data.writer import DatasetWriter
from vla.interface import Observation
from vla.processing.processor import Processor
from vla.resize import Resizing


@pytest.mark.parametrize("resizing", [None, Resizing(height=12, width=12, mode="pad")], ids=str)
def test_a_training_batch_is_the_observation_of_the_same_moment(tmp_path, resizing):
    spec, horizon, offsets = make_spec(), 5, (3, 0)
    episodes = [
        dataclasses.replace(episode, actions=np.tanh(episode.actions))
        for episode in make_episodes(spec, [9, 7])
    ]
    with DatasetWriter(tmp_path / "d", robot_spec=spec, storage="image") as writer:
        write_episodes(writer, episodes)
    windows = open_windows(
        [tmp_path / "d"],
        cache_dir=tmp_path / "c",
        action_horizon=horizon,
        frame_offsets=offsets,
        resizing=resizing,
        progress=False,
    )
    source = DemonstrationSource(windows)
    processor = Processor.fit(
        source.demonstrations(), codec={"kind": "uniform"}, frame_offsets=offsets, max_committed=2
    )
    indices = np.arange(windows.num_windows)
    batch = source.batch(indices, processor=processor, requests={}, seed=(0, 0))
    num_committed = (batch["committed"][..., 0] >= 0).sum(axis=1)
    assert set(num_committed.tolist()) == {0, 1, 2}

    observations = []
    for index in indices:
        number, now = (0, index) if index < 9 else (1, index - 9)
        episode = episodes[number]
        whole = np.concatenate([episode.actions[now:], np.repeat(episode.actions[-1:], horizon, axis=0)])
        observations.append(
            Observation(
                images={
                    name: np.stack(
                        [picture(spec, camera, number, max(now - offset, 0)) for offset in offsets]
                    )
                    for camera, name in enumerate(spec.camera_names)
                },
                state=episode.states[now],
                instruction=episode.task,
                committed=whole[: num_committed[index]],
                stamp=0.0,
            )
        )
    processor = Processor.from_json(processor.to_json())
    inputs = processor.encode_observations(observations)
    assert set(inputs) == set(processor.specs().inputs)
    for name, array in inputs.items():
        np.testing.assert_array_equal(batch[name], array, err_msg=name)
    for kept, given in zip(source.observations(indices), observations, strict=True):
        bare = dataclasses.replace(given, committed=kept.committed)
        for name, array in processor.encode_observations([bare]).items():
            np.testing.assert_array_equal(processor.encode_observations([kept])[name], array)
