"""Video through PyAV: encode an episode in memory, join mp4 files as packets, decode by timestamp.

Each object belongs to one thread and uses one. It knows about frames and seconds, not about episodes' files
or datasets. Frames are RGB uint8 [h w 3]; times are seconds from the start of a file.
"""

import errno
import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.error
import av.video
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float64, UInt8

from vla.data.layout import DatasetError

CODECS = ("h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mjpeg")
_VIDEO_ERRORS = (av.error.FFmpegError, EOFError)
_OF_THE_MACHINE = (errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ESTALE)  # not damage
_PADDING = 128  # pixels a side that a codec may add
_MOST_SECONDS = 1e9


class VideoEncoder:
    """Encodes frames as they come, as H.264 without B-frames, so that episodes can be joined as packets.

    `crf` is x264's quality (0 lossless, 18 visually so, 51 worst); a key frame comes every
    `keyframe_interval` frames at the latest, 2 as in LeRobot for quick random access.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        rate: Fraction,
        crf: int,
        keyframe_interval: int,
        preset: str,
        pixel_format: str,
    ) -> None:
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4")
        options = {"crf": str(crf), "preset": preset, "g": str(keyframe_interval), "bf": "0"}
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = pixel_format
        self._stream.codec_context.thread_count = 1
        self._stream.time_base = 1 / rate
        self._time_base = 1 / rate
        self.num_frames = 0

    def add(self, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Encode the next frame."""
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = self.num_frames, self._time_base
        self._container.mux(self._stream.encode(frame))
        self.num_frames += 1

    def finish(self) -> bytes:
        """Return the mp4 file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._buffer.getvalue()

    def discard(self) -> None:
        """Release the encoder; what was added is lost."""
        self._container.close()


class VideoJoiner:
    """Writes one mp4 file out of many, copying packets; every part must come from an equal `VideoEncoder`."""

    def __init__(self, path: Path, *, rate: Fraction) -> None:
        self.path, self.rate = path, rate
        self.num_frames = 0
        self.num_bytes = 0
        self._container = av.open(str(path), "w", format="mp4")
        self._stream: av.video.stream.VideoStream | None = None
        self._header = b""

    def accepts(self, mp4: bytes) -> bool:
        """Tell whether the part has the codec header of this file (another x264 build may write another)."""
        with av.open(io.BytesIO(mp4), "r") as part:
            return (
                self._stream is None or (part.streams.video[0].codec_context.extradata or b"") == self._header
            )

    def append(self, mp4: bytes) -> tuple[float, float]:
        """Copy all packets of `mp4` behind the last; return the part's start and end in this file [s]."""
        start = self.num_frames
        with av.open(io.BytesIO(mp4), "r") as part:
            source = part.streams.video[0]
            if self._stream is None:
                self._stream = self._container.add_stream_from_template(source)
                self._header = source.codec_context.extradata or b""
            assert source.time_base is not None
            offset = int(start / self.rate / source.time_base)
            for packet in part.demux(source):
                if packet.pts is None or packet.dts is None:  # the flush packet that ends a stream
                    continue
                packet.pts += offset
                packet.dts += offset
                packet.stream = self._stream
                self._container.mux(packet)
                self.num_frames += 1
        self.num_bytes += len(mp4)
        return float(start / self.rate), float(self.num_frames / self.rate)

    def finish(self) -> None:
        """Complete the file."""
        self._container.close()


def count_frames(mp4: bytes) -> int:
    """Return the number of frames of an mp4 file in memory, without decoding them.

    Raises:
        DatasetError: it is no mp4 file with a video.
    """
    try:
        with av.open(io.BytesIO(mp4), "r") as container:
            packets = container.demux(container.streams.video[0])
            return sum(packet.pts is not None for packet in packets)
    except (*_VIDEO_ERRORS, IndexError) as error:
        raise DatasetError(f"its video cannot be read ({error})") from error


def check_mp4(path: Path) -> None:
    """Check cheaply, without decoding, that an mp4 file is whole: its boxes end where the file ends.

    Raises:
        DatasetError: the file is missing, truncated, or lacks its index (the `moov` box).
    """
    if not path.is_file():
        raise DatasetError(
            f"video file {path} is missing; restore it, or record or download the dataset again"
        )
    size, position, kinds = path.stat().st_size, 0, []
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            header = file.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            elif length == 0:
                length = size - position
            if length < 8:
                break
            kinds.append(kind)
            position += length
    if position != size or b"moov" not in kinds:
        raise DatasetError(
            f"video file {path} ({size} bytes) is truncated or no mp4; restore it from a copy, or record or "
            "download the dataset again"
        )


def _only_video(container: av.container.InputContainer, path: Path) -> av.video.stream.VideoStream:
    """Return the video stream of a file, if its codec is one that videos of robots have."""
    streams = container.streams.video
    if not streams:
        raise DatasetError(f"video file {path} holds no video; restore it from a copy")
    codec = streams[0].codec_context.name
    if not codec.startswith(CODECS) and "av1" not in codec:
        raise DatasetError(f"video file {path} has the codec {codec!r}; those read are {list(CODECS)}")
    return streams[0]


def _require_plausible(timestamps: Float64[np.ndarray, " frames"], path: Path) -> None:
    is_plausible = np.abs(timestamps) <= _MOST_SECONDS  # false for NaN
    if not is_plausible.all():
        raise DatasetError(
            f"frames of {path} are to be read at {timestamps[~is_plausible][0]} s; "
            "the timestamps in data/ or meta/episodes are damaged: restore them from a copy"
        )


def decode_frames(
    path: Path,
    timestamps: Float64[np.ndarray, " frames"],
    *,
    height: int,
    width: int,
    tolerance_s: float,
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yield the frames at ascending `timestamps` [s], in one pass from the key frame before the first.

    Raises:
        DatasetError: the file is damaged, its frames have another size, or no frame lies within
            `tolerance_s` of a timestamp; the message gives the nearest.
    """
    _require_plausible(timestamps, path)
    found, latest = 0, float("nan")
    reformatter = VideoReformatter()
    try:
        with av.open(
            str(path.absolute()), "r", format="mp4"
        ) as container:  # and never what else FFmpeg can open
            stream = _only_video(container, path)
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {
                "err_detect": "explode",  # or damage becomes a plausible picture
                "max_pixels": str((height + _PADDING) * (width + _PADDING)),
            }
            time_base = stream.time_base
            if time_base is None:
                raise DatasetError(f"video file {path} has no time base; it cannot be read by timestamp")
            container.seek(max(0, int((timestamps[0] - tolerance_s) / time_base)), stream=stream)
            for frame in container.decode(stream):
                assert frame.pts is not None
                latest = float(frame.pts * time_base)
                if latest < timestamps[found] - tolerance_s:
                    continue
                if latest > timestamps[found] + tolerance_s:
                    break
                if (frame.height, frame.width) != (height, width):
                    raise DatasetError(
                        f"video file {path} has frames of {frame.height}x{frame.width} (h x w), "
                        f"but meta/info.json says {height}x{width}"
                    )
                image = reformatter.reformat(frame, format="rgb24").to_ndarray()
                while found < len(timestamps) and timestamps[found] <= latest + tolerance_s:
                    yield image
                    found += 1
                if found == len(timestamps):
                    return
    except _VIDEO_ERRORS as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise
        raise DatasetError(
            f"video file {path} cannot be decoded ({error}); restore it from a copy"
        ) from error
    raise DatasetError(
        f"video file {path} has no frame within {tolerance_s * 1e3:.3g} ms of {timestamps[found]:.6f} s; "
        f"the last one read is at {latest:.6f} s. It is truncated, or its timestamps do not fit meta/episodes"
    )
