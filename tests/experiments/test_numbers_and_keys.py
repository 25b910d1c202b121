"""Every number and every key of every program, tried with values and names that make no sense.

Each value is accepted with a sensible meaning, or refused in one line that names its key. The counts in
experiments/results/faults.md are printed by

    python -m pytest tests/experiments/test_numbers_and_keys.py -k counted -s
"""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from setting_walk import MODEL, Attempt

ROOT = Path(__file__).parents[2]
LIMITS = "velocity acceleration jerk step refuse_position_factor refuse_speed_factor max_tracking_error"
HUGE = (  # as many as there are; never; unlimited
    "first_seed seed split_seed max_windows num_samples samples_per_round max_grad_norm log_every_steps "
    "validate_every_steps rollout_every_samples "
    f"{LIMITS}"
)
SENSIBLE = {  # by value, the settings for which it has a meaning
    "0": "same_color_share recording_same_color_share noise_std probability bump_probability extra_steps "
    "drop_probability latency_s jitter_s videos_per_task faults after_success after_failure "  # none
    "max_shift brightness contrast color smoothing_bins weight weight_decay betas ema_decay warmup_share "
    "ensemble_decay validation_share max_committed malformed_pause_s inference_delay_s delays_ms "  # none
    "first_seed seed split_seed frame_offsets "  # the first
    "save_every_minutes server_wait_s "  # with every step; at once
    "port vla_eval_execute_horizon "  # any free one; the whole chunk
    "frozen_motion black_level "  # even at rest; nothing
    "low high state.pan action.pan",  # a position
    "-1": "keep_checkpoints low high state.pan action.pan",  # all; a position
    "1000000000": HUGE,
    "1000000000.0": HUGE,
    "inf": LIMITS,  # unlimited
}


@pytest.fixture(scope="module")
def attempts() -> list[Attempt]:
    command = [sys.executable, ROOT / "tests" / "experiments" / "setting_walk.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [Attempt(*json.loads(line)) for line in done.stdout.splitlines()]


def names_key(attempt: Attempt) -> bool:
    """Whether a message is one line and names the key, or the map that it is in and its name.

    What does not fit into a model is named without that map: the model's parts do not know where they are.
    """
    place, _, name = attempt.key.rpartition(".")
    message = str(attempt.message)
    is_placed = place in message or place.split(".")[0] in MODEL
    return "\n" not in message and (attempt.key in message or (is_placed and name in message))


def is_sensible(attempt: Attempt) -> bool:
    names = SENSIBLE.get(attempt.given, "").split()
    return any(attempt.key == name or attempt.key.endswith(f".{name}") for name in names)


def test_every_number_declares_its_least_and_its_greatest_value(attempts):
    assert not [attempt for attempt in attempts if attempt.kind == "unbounded"]
    endless = [one for one in attempts if one.kind == "bound" and not math.isfinite(float(one.given))]
    assert {one.key.rpartition(".")[2] for one in endless} <= set(LIMITS.split())


def test_every_number_has_a_meaning_or_is_refused_in_one_line_that_names_the_key(attempts):
    accepted = [one for one in attempts if one.kind == "value" and one.message is None]
    assert not [one for one in accepted if not is_sensible(one)]
    refused = [one for one in attempts if one.kind != "key" and one.message is not None]
    assert not [one for one in refused if not names_key(one)]


def test_the_range_in_the_message_is_the_range_that_is_kept(attempts):
    beyond = [one for one in attempts if one.kind == "beyond"]
    assert not [one for one in beyond if one.message is None or one.range not in one.message]


def test_every_misspelled_key_is_refused_with_the_right_one(attempts):
    wrong = [one for one in attempts if one.kind == "key"]
    for one in wrong:
        assert f"unknown key '{one.key}'; did you mean '{one.given}'?" in str(one.message), one


def test_what_is_tried_is_counted(attempts):
    counts = Counter((one.program, one.kind == "key", one.message is None) for one in attempts)
    for program in dict.fromkeys(one.program for one in attempts):
        keys = len({one.key for one in attempts if one.program == program and one.kind == "value"})
        accepted, refused, misspelled = (
            counts[program, *kind] for kind in ((False, True), (False, False), (True, False))
        )
        print(f"| {program} | {keys} | {accepted + refused} | {accepted} | {refused} | {misspelled} |")
    assert len(attempts) > 5000
