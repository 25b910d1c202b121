"""The page of a recording: what was found, pictures of some episodes, and channels over time.

People look rather than read, so pictures and curves come before tables of numbers.
"""

import base64
import html
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.reports.charts import Series
from experiments.reports.html import Chart, Charts, Commands, Headline, Section, Table, Text, write_report
from experiments.reports.pages import machine
from experiments.reports.views import legend, view_pictures
from vla.data.geometry import read_views, recorded_geometry
from vla.data.layout import DatasetError, camera_key
from vla.data.lerobot_v3 import Dataset
from vla.data.quality.episodes import sentences
from vla.data.quality.findings import SEVERITIES, Finding
from vla.data.quality.recording import Recording, paired_channels
from vla.geometry import ViewGeometry
from vla.spec import Channel

SHEET_EPISODES, SHEET_FRAMES, SHEET_HEIGHT = 8, 3, 120  # of a contact sheet; height in pixels
VIEW_SIZE = 192  # of a side of a picture with recorded points, or of its depth [pixels]
CURVES = 4  # episodes in a chart
BINS = 40
SHOWN_SENTENCES = 30
SEVERITY_COLORS = {"error": "#b3261e", "warning": "#b26a00", "note": "#5b6472"}

Summary = tuple[str, list[str], list[list[str]]]  # title, header, rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What was found, each with what to do."""

    title: str
    findings: Sequence[Finding]

    def to_html(self) -> str:
        """Return a table, severities colored."""
        if not self.findings:
            return "<p>Nothing was found.</p>"
        rows = "".join(_finding_row(one) for one in self.findings)
        head = "<tr><th>severity</th><th>check</th><th>what was found</th><th>what to do</th></tr>"
        return f'<div class="wide"><table>{head}{rows}</table></div>'


def _finding_row(one: Finding) -> str:
    place = ", ".join(text for text in (one.channel, one.camera) if text)
    listed = ", ".join(map(str, one.episodes[:20])) + (" ..." if len(one.episodes) > 20 else "")
    small = "".join(
        f'<p class="note">{html.escape(text)}</p>'
        for text in (place, f"episodes {listed}" * bool(listed))
        if text
    )
    badge = f'<span class="badge" style="background:{SEVERITY_COLORS[one.severity]}">{one.severity}</span>'
    return (
        f"<tr><td>{badge}</td><td><code>{html.escape(one.check)}</code></td>"
        f"<td>{html.escape(one.message)}{small}</td><td>{html.escape(one.advice)}</td></tr>"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ContactSheet:
    """Pictures side by side, each row with its caption."""

    title: str
    strips: Sequence[tuple[str, bytes]]  # caption, JPEG

    def to_html(self) -> str:
        """Return one card per episode."""
        cards = (
            '<figure><img style="width:100%" alt="pictures side by side" '
            f'src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
            f'<figcaption class="note">{html.escape(caption)}</figcaption></figure>'
            for caption, jpeg in self.strips
        )
        return f'<div class="cards">{"".join(cards)}</div>'


def summary(dataset: Dataset) -> list[Summary]:
    """Return what a recording holds, as tables: size, cameras, channels and instructions."""
    info, spec = dataset.info, dataset.robot_spec
    rate = float(info["fps"])
    lengths = dataset.episode_lengths
    size = [
        ["robot", spec.name],
        ["episodes", str(dataset.num_episodes)],
        ["frames", f"{dataset.num_frames} ({dataset.num_frames / rate / 60:.1f} minutes at {rate:g} Hz)"],
        ["episode length", f"{min(lengths)} to {max(lengths)} frames, median {np.median(lengths):g}"],
        ["actions", f"{spec.action_convention}; gripper {spec.gripper_sign}"],
    ]
    cameras = [
        [camera.name, f"{camera.height} x {camera.width}", _codec(dataset, camera.name)]
        for camera in spec.cameras
    ]
    channels = _channel_rows("state", spec.state, dataset.states) + _channel_rows(
        "action", spec.action, dataset.actions
    )
    counts = Counter(sentences(Recording.of(dataset))).most_common()
    texts = [[text or "(empty)", str(count)] for text, count in counts[:SHOWN_SENTENCES]]
    if len(counts) > SHOWN_SENTENCES:
        texts.append(
            [f"and {len(counts) - SHOWN_SENTENCES} more", str(sum(n for _, n in counts[SHOWN_SENTENCES:]))]
        )
    return [
        ("Recording", ["", "value"], size),
        ("Cameras", ["camera", "height x width", "stored as"], cameras),
        (
            "Channels",
            ["channel", "unit", "declared range", "seen: min", "1 %", "mean", "99 %", "max"],
            channels,
        ),
        ("Instructions", ["instruction", "episodes"], texts),
    ]


def _codec(dataset: Dataset, camera: str) -> str:
    if dataset.storage(camera) == "image":
        return "images in parquet"
    info = dataset.info["features"][camera_key(camera)].get("info") or {}
    return " ".join(str(info[key]) for key in ("video.codec", "video.pix_fmt") if key in info) or "video"


def _channel_rows(kind: str, channels: Sequence[Channel], values: np.ndarray) -> list[list[str]]:
    exact = values.astype(np.float64)
    numbers = [
        exact.min(0),
        *np.quantile(exact, [0.01], axis=0),
        exact.mean(0),
        *np.quantile(exact, [0.99], axis=0),
        exact.max(0),
    ]
    return [
        [
            f"{kind}/{one.name}",
            one.unit,
            f"[{one.low:.4g}, {one.high:.4g}]",
            *(f"{column[i]:.4g}" for column in numbers),
        ]
        for i, one in enumerate(channels)
    ]


def write_recording_page(
    path: Path,
    dataset: Dataset | None,
    *,
    findings: Sequence[Finding],
    guesses: Sequence[str],
    name: str,
    command: str,
) -> None:
    """Write the page.

    Args:
        path: where, usually ``report.html``.
        dataset: what was examined; None if it cannot be opened.
        findings: what was found.
        guesses: what the dataset does not say and was guessed.
        name: of the dataset, for the title.
        command: what was typed.
    """
    counts = Counter(one.severity for one in findings)
    tiles = [
        Headline(
            label=f"{severity}s",
            value=str(counts[severity]),
            met=counts[severity] == 0 if severity == "error" else None,
        )
        for severity in SEVERITIES
    ]
    sections: list[Section] = [Findings(title="Findings", findings=findings)]
    if guesses:
        sections.append(
            Text(
                title="Guessed",
                paragraphs=[*guesses, "Give action_convention= and gripper_sign= if a guess is wrong."],
            )
        )
    if dataset is not None:
        tiles += [
            Headline(label="episodes", value=str(dataset.num_episodes)),
            Headline(label="minutes", value=f"{dataset.num_frames / float(dataset.info['fps']) / 60:.1f}"),
        ]
        sections += [*_sheets(dataset, findings), *_view_sheets(dataset)]
        sections += [*_curves(dataset), _histograms(dataset)]
        sections += [Table(title=title, header=header, rows=rows) for title, header, rows in summary(dataset)]
    sections.append(Commands(title="Command", commands=[(command, "")]))
    write_report(path, title=f"Check of {name}", subtitle=machine(), headlines=tiles, sections=sections)


def _shown_episodes(dataset: Dataset, findings: Sequence[Finding], camera: str) -> list[int]:
    """Return episodes evenly spread, and those that something was found in with this camera."""
    odd = [number for one in findings if one.camera and camera in one.camera for number in one.episodes[:2]]
    return sorted({*odd[:SHEET_EPISODES], *_spread_episodes(dataset)})


def _spread_episodes(dataset: Dataset) -> list[int]:
    spread = np.linspace(0, dataset.num_episodes - 1, min(SHEET_EPISODES, dataset.num_episodes)).round()
    return spread.astype(int).tolist()


def _sheets(dataset: Dataset, findings: Sequence[Finding]) -> list[ContactSheet]:
    sheets = []
    texts = sentences(Recording.of(dataset))
    for camera in dataset.robot_spec.camera_names:
        strips = []
        for number in _shown_episodes(dataset, findings, camera):
            start, length = int(dataset.episode_starts[number]), int(dataset.episode_lengths[number])
            frames = np.linspace(start, start + length - 1, SHEET_FRAMES).round().astype(int)
            caption = f"episode {number}, {length} frames: {texts[number]}"
            try:
                images = [dataset.frames(camera, int(i), int(i) + 1)[0] for i in frames]
            except DatasetError as error:
                images, caption = [np.zeros((90, 120, 3), np.uint8)], f"{caption}. Not shown: {error}"
            strips.append((caption, strip(images)))
        sheets.append(ContactSheet(title=f"Camera {camera}: first, middle and last picture", strips=strips))
    return sheets


def _view_sheets(dataset: Dataset) -> list[ContactSheet]:
    """Return points and depth in pictures of some episodes, where they were recorded."""
    spec = recorded_geometry(dataset.info, dataset.robot_spec)
    if spec is None:
        return []
    sheets, texts = [], sentences(Recording.of(dataset))
    for camera, view in read_views(dataset).items():
        strips = []
        for number in _spread_episodes(dataset):
            start, length = int(dataset.episode_starts[number]), int(dataset.episode_lengths[number])
            numbers = np.linspace(start, start + length - 1, SHEET_FRAMES).round().astype(int)
            caption = f"episode {number}: {texts[number]}"
            try:
                frames = [dataset.frames(camera, int(i), int(i) + 1)[0] for i in numbers]
            except DatasetError as error:
                strips.append((f"{caption}. Not shown: {error}", strip([np.zeros((90, 120, 3), np.uint8)])))
                continue
            seen = ViewGeometry(depth=view.depth[numbers], points=view.points[numbers])
            strips.append((caption, strip(view_pictures(frames, seen, size=VIEW_SIZE), height=2 * VIEW_SIZE)))
        sheets.append(ContactSheet(title=f"Camera {camera}: {legend(spec.points)}", strips=strips))
    return sheets


def strip(images: Sequence[np.ndarray], *, height: int = SHEET_HEIGHT) -> bytes:
    """Return pictures side by side as JPEG, scaled to a height [pixels]."""
    rows, columns = images[0].shape[:2]
    size = (round(columns * height / rows), height)
    sheet = Image.new("RGB", (size[0] * len(images), height))
    for i, image in enumerate(images):
        sheet.paste(Image.fromarray(image).resize(size), (i * size[0], 0))
    buffer = io.BytesIO()
    sheet.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def _curves(dataset: Dataset) -> list[Charts]:
    """Return each channel over time in some episodes; absolute actions next to their state."""
    spec, hz = dataset.robot_spec, dataset.robot_spec.control_hz
    numbers = np.unique(np.linspace(0, dataset.num_episodes - 1, CURVES).round().astype(int)).tolist()
    sections = []
    for kind, channels, values in (
        ("state", spec.state, dataset.states),
        ("action", spec.action, dataset.actions),
    ):
        charts = []
        for i, channel in enumerate(channels):
            series = []
            for number in numbers:
                start = int(dataset.episode_starts[number])
                part = values[start : start + int(dataset.episode_lengths[number]), i]
                times = (np.arange(len(part)) / hz).tolist()
                series.append(Series(name=f"episode {number}", x=times, y=part.tolist()))
            charts.append(
                Chart(
                    caption=f"{kind}/{channel.name}",
                    series=series,
                    x_label="time [s]",
                    y_label=f"[{channel.unit}]",
                )
            )
        sections.append(Charts(title=f"{kind.capitalize()} over time", charts=charts))
    return sections


def _histograms(dataset: Dataset) -> Charts:
    """Return how often each value occurs; an action next to its state, where both are positions."""
    spec = dataset.robot_spec
    absolute = spec.action_convention == "joint_target"
    pairs = (
        {state: action for action, state in paired_channels(spec.action_names, spec.state_names)}
        if absolute
        else {}
    )
    groups: list[tuple[Channel, list[tuple[str, np.ndarray]]]] = []
    for i, channel in enumerate(spec.state):
        moved_by = [("action", dataset.actions[:, pairs[i]])] if i in pairs else []
        groups.append((channel, [("state", dataset.states[:, i]), *moved_by]))
    groups += [
        (channel, [("action", dataset.actions[:, i])])
        for i, channel in enumerate(spec.action)
        if i not in pairs.values()
    ]
    charts = []
    for channel, columns in groups:
        low, high = (min(c.min() for _, c in columns), max(c.max() for _, c in columns))
        if low == high:
            continue
        edges = np.linspace(low, high, BINS + 1)
        series = [
            Series(
                name=kind,
                x=((edges[1:] + edges[:-1]) / 2).tolist(),
                y=(np.histogram(c, edges)[0] / len(c)).tolist(),
            )
            for kind, c in columns
        ]
        caption = f"{' and '.join(kind for kind, _ in columns)}: {channel.name}"
        charts.append(
            Chart(caption=caption, series=series, x_label=f"[{channel.unit}]", y_label="share of frames")
        )
    return Charts(title="How often each value occurs", charts=charts)
