from fractions import Fraction

import numpy as np
import pytest

from vla.data.layout import DatasetError
from vla.data.video import VideoEncoder, VideoJoiner, check_mp4, decode_frames


def clip(count, *, first=0, size=(32, 48)):
    ramp = np.linspace(0, 60, size[1])[None, :, None] + np.zeros((size[0], 1, 3))
    return [(ramp + (first + 7 * t) % 180).astype(np.uint8) for t in range(count)]


def encode(frames, *, rate=Fraction(20), crf=10, pixel_format="yuv420p"):
    height, width = frames[0].shape[:2]
    encoder = VideoEncoder(
        height=height,
        width=width,
        rate=rate,
        crf=crf,
        keyframe_interval=2,
        preset="fast",
        pixel_format=pixel_format,
    )
    for frame in frames:
        encoder.add(frame)
    return encoder.finish()


def decode(path, times, *, tolerance_s=0.01, size=(32, 48)):
    frames = decode_frames(
        path, np.array(times, float), height=size[0], width=size[1], tolerance_s=tolerance_s
    )
    return np.stack(list(frames))


@pytest.mark.parametrize("rate", [Fraction(20), Fraction(30), Fraction(25, 2), Fraction(30000, 1001)])
def test_joined_clips_decode_as_one(tmp_path, rate):
    clips = [clip(5), clip(1, first=50), clip(12, first=90)]
    joiner = VideoJoiner(tmp_path / "all.mp4", rate=rate)
    spans = []
    for frames in clips:
        mp4 = encode(frames, rate=rate)
        assert joiner.accepts(mp4)
        spans.append(joiner.append(mp4))
    joiner.finish()
    check_mp4(tmp_path / "all.mp4")
    assert spans == [(float(a / rate), float(b / rate)) for a, b in ((0, 5), (5, 6), (6, 18))]

    wanted = np.concatenate(clips).astype(int)
    times = np.arange(18) / float(rate)
    for start in (0, 1, 5, 17):
        images = decode(tmp_path / "all.mp4", times[start:], tolerance_s=1e-4)
        assert np.abs(images - wanted[start:]).mean(axis=(1, 2, 3)).max() < 3


def test_a_part_with_another_codec_header_is_not_accepted(tmp_path):
    joiner = VideoJoiner(tmp_path / "all.mp4", rate=Fraction(20))
    joiner.append(encode(clip(3)))
    assert not joiner.accepts(encode(clip(3, size=(32, 64))))
    joiner.finish()


def test_colors_survive(tmp_path):
    colors = [(200, 30, 30), (30, 160, 40), (30, 60, 200), (230, 200, 40), (0, 0, 0), (255, 255, 255)]
    frames = [np.full((32, 48, 3), color, np.uint8) for color in colors]
    (tmp_path / "x.mp4").write_bytes(encode(frames))
    images = decode(tmp_path / "x.mp4", np.arange(6) / 20)
    assert np.abs(images.astype(int) - np.stack(frames)).max() <= 4


def test_full_color_resolution_keeps_small_colored_things(tmp_path):
    frames = np.full((4, 32, 48, 3), 40, np.uint8)
    frames[:, 11:14, 21:24] = (220, 30, 30)
    errors = {}
    for pixel_format in ("yuv420p", "yuv444p"):
        path = tmp_path / f"{pixel_format}.mp4"
        path.write_bytes(encode(list(frames), pixel_format=pixel_format))
        errors[pixel_format] = np.abs(decode(path, np.arange(4) / 20).astype(int) - frames).max()
    assert errors["yuv444p"] < 20 < errors["yuv420p"], errors


def test_a_timestamp_without_frame_is_refused(tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(encode(clip(10)))
    assert len(decode(path, [0.0, 0.0, 0.055, 0.45])) == 4
    with pytest.raises(
        DatasetError, match=r"no frame within 10 ms of 0\.525000 s; the last one read is at 0\.45"
    ):
        decode(path, [0.4, 0.525])
    with pytest.raises(DatasetError, match=r"no frame within 10 ms of 0\.075000 s"):
        decode(path, [0.075, 0.1])


def test_a_frame_of_another_size_is_refused(tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(encode(clip(3)))
    with pytest.raises(DatasetError, match=r"has frames of 32x48 \(h x w\), but meta/info\.json says 16x48"):
        decode(path, [0.0], size=(16, 48))


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncation_is_seen_without_decoding(tmp_path, keep):
    path = tmp_path / "x.mp4"
    path.write_bytes(encode(clip(10))[:keep])
    with pytest.raises(DatasetError, match=r"x\.mp4 .* is truncated or no mp4"):
        check_mp4(path)


def test_other_files_are_no_video(tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(b"\x00\x00\x00\x10notavideo......." * 4)
    with pytest.raises(DatasetError, match="truncated or no mp4"):
        check_mp4(path)
    with pytest.raises(DatasetError, match="cannot be decoded"):
        decode(path, [0.0])
