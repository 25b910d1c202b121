"""Settings of every test: draw with EGL in the calling thread, no network, no clock for hypothesis."""

import os

import hypothesis

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "0")
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

# A busy machine may take any time over an example; how long a test may take, pytest's timeout says.
hypothesis.settings.register_profile("no_clock", deadline=None)
hypothesis.settings.load_profile("no_clock")
