"""A film of a run costs its loop nothing, and ends nothing."""

import threading
import time

import numpy as np

from policies.runtime.film import Film
from vla.interface import SensorReading


def reading(stamp, *, height=8, wrist_height=4):
    images = {
        "exterior": np.full((height, 8, 3), 200, np.uint8),
        "wrist": np.full((wrist_height, 4, 3), 100, np.uint8),
    }
    return SensorReading(
        images=images,
        image_stamps=dict.fromkeys(images, stamp),
        state=np.zeros(1, np.float32),
        state_stamp=stamp,
    )


def see_slowly(film, readings):
    """Hand readings over, each after the one before has been kept."""
    for one in readings:
        before = len(film.frames) + film.num_dropped
        film.see(one)
        for _ in range(20):
            if len(film.frames) + film.num_dropped > before:
                break
            time.sleep(0.001)


def test_some_frames_a_second_are_kept_with_all_cameras_side_by_side():
    film = Film(frames_hz=5.0)
    see_slowly(film, [reading(0.05 * i) for i in range(21)])
    film.close()
    assert [round(stamp, 2) for stamp, _ in film.frames] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    frame = film.frames[0][1]
    assert frame.shape == (8, 12, 3)
    assert (frame[:4, 8:] == 100).all()
    assert (frame[4:, 8:] == 0).all()  # below the smaller camera
    assert film.num_dropped == 0


def test_large_frames_are_made_small():
    film = Film(max_height=120)
    film.see(reading(0.0, height=480))
    film.close()
    assert film.frames[0][1].shape[0] == 120


def test_a_film_that_is_full_counts_what_it_drops():
    film = Film(max_frames=2)
    see_slowly(film, [reading(float(i)) for i in range(5)])
    film.close()
    assert (len(film.frames), film.num_dropped) == (2, 3)


def test_a_slow_thread_makes_nobody_wait(monkeypatch):
    free = threading.Event()
    monkeypatch.setattr(Film, "_keep", lambda _self, _reading: free.wait(60))
    film = Film()
    began = time.monotonic()
    for i in range(50):
        film.see(reading(float(i)))
    assert time.monotonic() - began < 5.0
    assert film.num_dropped == 46
    free.set()
    film.close()


def test_frames_that_cannot_be_kept_end_the_film_alone():
    film = Film()
    broken = reading(0.0)
    broken.images["wrist"] = np.zeros(3, np.uint8)  # no picture
    film.see(broken)
    film.close()
    film.see(reading(1.0))
    assert (film.frames, film.num_dropped) == ([], 1)
