"""What a recording is made of: the environment of the run, or more lessons in shapes if asked for."""

import pytest

from experiments.collect import Collection
from experiments.schema import CollectConfig
from experiments.schema_env import EnvConfig


@pytest.mark.parametrize(("asked", "wanted"), [(None, 0.2), (0.5, 0.5)])
def test_recordings_may_hold_more_twins_than_the_run_has(tmp_path, asked, wanted):
    env = EnvConfig(
        family="tabletop",
        image_size=16,
        cameras=["exterior"],
        render_quality="fast",
        wording="train",
        level="none",
        twin_share=0.2,
    )
    settings = CollectConfig(
        episodes_per_task=1,
        noise_probability=0.0,
        noise_std=0.0,
        bump_probability=0.0,
        twin_share=asked,
        storage="image",
    )
    collection = Collection(root=tmp_path / "dataset", env=env, tasks=["reach", "lift"], collect=settings)
    collection.writer.close()
    assert {config["twin_share"] for config in collection.configs.values()} == {wanted}
    assert env.twin_share == 0.2
