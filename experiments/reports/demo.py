"""The page of the demo, and the captions of its film."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from experiments.reports.html import Commands, Film, Headline, Section, Table, Text, write_report
from experiments.reports.pages import machine

_BAR_PX, _FONT_PX, _MARGIN_PX = 44, 22, 12
_DARK, _WHITE, _GOOD, _BAD = (22, 26, 32), (255, 255, 255), (120, 220, 140), (245, 150, 110)


def with_caption(
    frame: UInt8[np.ndarray, "h w 3"], text: str, end: str, *, is_good: bool
) -> UInt8[np.ndarray, "_ w 3"]:
    """Return a frame below a bar with a sentence, and on the right how it ended.

    Args:
        frame: of the film.
        text: the sentence; what is too long for the bar is cut.
        end: how it ended; empty while it goes on.
        is_good: chooses the color of `end`.
    """
    width = frame.shape[1]
    bar = Image.new("RGB", (width, _BAR_PX), _DARK)
    draw, font = ImageDraw.Draw(bar), ImageFont.load_default(size=_FONT_PX)
    middle = _BAR_PX // 2
    room = width - 2 * _MARGIN_PX - (draw.textlength(end, font=font) + _MARGIN_PX if end else 0)
    while text and draw.textlength(text, font=font) > room:
        text = f"{text.removesuffix('...')[:-1].rstrip()}..." if len(text) > 4 else ""
    draw.text((_MARGIN_PX, middle), text, font=font, fill=_WHITE, anchor="lm")
    draw.text((width - _MARGIN_PX, middle), end, font=font, fill=_GOOD if is_good else _BAD, anchor="rm")
    return np.concatenate([np.asarray(bar, dtype=np.uint8), frame])


def write_demo_page(
    path: Path,
    *,
    film: Path,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    headline: str,
    title: str,
    took_s: float,
    commands: Sequence[tuple[str, str]],
    note: str,
) -> None:
    """Write the page: film, table, commands.

    Args:
        path: where.
        film: that it embeds.
        header: of the table.
        rows: of the table, one per sentence.
        headline: how many sentences were obeyed.
        title: of the page.
        took_s: seconds from the command to here.
        commands: each with what it does.
        note: what the numbers mean.
    """
    sections: list[Section] = [
        Film(title="Film", path=film, note="One sentence after another; the policy gets nothing else."),
        Table(title="Sentences", header=header, rows=rows, note="Seconds of simulated time."),
        Text(title="How to read it", paragraphs=[note]),
        Commands(title="Commands", commands=commands),
    ]
    write_report(
        path,
        title=title,
        subtitle=f"{machine()}; {took_s:.0f} s from the command to this page",
        headlines=[Headline(label="sentences obeyed", value=headline)],
        sections=sections,
    )
