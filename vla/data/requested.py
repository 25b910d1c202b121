"""What auxiliary targets learn from demonstrations: later states, depth, points, traces, past actions.

`requested_targets` answers the requests of a model (`AuxiliaryTarget.requests`). What is seen in a frame
follows the frame: where augmentation shifts it, depth and points shift with it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt16

from vla.data.windows import Windows
from vla.geometry import OUTSIDE
from vla.processing.processor import Processor
from vla.processing.state import StateInput

_MM_PER_M = 1000.0
_CLIP = 2.0  # of a scaled action
_Indices = Int64[np.ndarray, " batch"]
_Shifts = Float64[np.ndarray, "batch images 2"]


def requested_targets(
    windows: Windows,
    indices: Int64[np.ndarray, " batch"],
    requests: Mapping[str, Any],
    *,
    processor: Processor,
    shifts: Float64[np.ndarray, "batch images 2"],
) -> dict[str, np.ndarray]:
    """Return further targets by name.

    Args:
        windows: of demonstrations.
        indices: of windows.
        requests: ``later_states``: offsets [control periods]. ``depth``: number of cells along a side.
            ``points``: names. ``traces``: ``{"points": names, "offsets": control periods}``.
            ``past_actions``: offsets, too.
        processor: scales states as its input does.
        shifts: by which share of its height and width each frame was moved up and to the left.

    Raises:
        ValueError: something else is requested, or what was not recorded.
        DatasetError: depth, points or traces are requested of a dataset without geometry.
    """
    makers: Mapping[str, Callable[[Any], dict[str, np.ndarray]]] = {
        "later_states": lambda offsets: _later_states(windows, indices, offsets, processor),
        "depth": lambda cells: _depth(windows, indices, cells, shifts),
        "points": lambda names: {"points": _traces(windows, indices, names, (0,), shifts)[:, :, 0]},
        "traces": lambda wanted: {
            "traces": _traces(windows, indices, wanted["points"], wanted["offsets"], shifts)
        },
        "past_actions": lambda offsets: _past_actions(windows, indices, offsets),
    }
    for name in requests:
        if name not in makers:
            raise ValueError(
                f"an auxiliary target learns {name!r}, which demonstrations do not have; they have "
                f"{sorted(makers)}. Take it out of model.auxiliaries"
            )
    return {key: array for name, value in requests.items() for key, array in makers[name](value).items()}


def _later_states(
    windows: Windows, indices: _Indices, offsets: Any, processor: Processor
) -> dict[str, np.ndarray]:
    (encoder,) = (one for one in processor.inputs.values() if isinstance(one, StateInput))
    return {"later_states": encoder.normalize(windows.later_states(indices, offsets))}


def _depth(windows: Windows, indices: _Indices, cells: int, shifts: _Shifts) -> dict[str, np.ndarray]:
    depth = windows.depth(indices)
    if depth.shape[-1] != cells:
        raise ValueError(
            f"depth was recorded in {depth.shape[-1]} x {depth.shape[-1]} cells, and {cells} are requested; "
            f"give cells={depth.shape[-1]} to the auxiliary target"
        )
    return {"depth": shifted_depth(depth, shifts)}


def shifted_depth(
    depth: UInt16[np.ndarray, "batch images cells cells"], shifts: Float64[np.ndarray, "batch images 2"]
) -> Float32[np.ndarray, "batch images cells cells"]:
    """Return the depth of shifted frames [m]; 0 where nothing is.

    Between the middles of cells the inverse of depth is interpolated, which is exact on a plane; beyond the
    edge the edge repeats, as in the frame.

    Args:
        depth: of the frames before [mm]; 0 where nothing is.
        shifts: by which share of its height and width each frame was moved up and to the left.
    """
    inverse = np.divide(_MM_PER_M, depth, out=np.zeros(depth.shape), where=depth > 0)
    cells = depth.shape[-1]
    for axis in (2, 3):  # rows, columns
        places = np.clip(np.arange(cells) + shifts[..., axis - 2, None] * cells, 0, cells - 1)
        lower = np.minimum(np.floor(places).astype(np.int64), cells - 2)
        share = np.expand_dims(places - lower, 5 - axis)
        near, far = (
            np.take_along_axis(inverse, np.expand_dims(lower + step, 5 - axis), axis=axis) for step in (0, 1)
        )
        inverse = (1 - share) * near + share * far
    moved = np.divide(1.0, inverse, out=np.zeros(depth.shape), where=inverse > 0)
    return moved.astype(np.float32)


def _traces(
    windows: Windows, indices: _Indices, points: Sequence[str], offsets: Sequence[int], shifts: _Shifts
) -> Float32[np.ndarray, "batch images future point 3"]:
    return shifted_traces(windows.traces(indices, points=points, offsets=offsets), shifts)


def shifted_traces(
    traces: Float32[np.ndarray, "batch images future point 3"], shifts: Float64[np.ndarray, "batch images 2"]
) -> Float32[np.ndarray, "batch images future point 3"]:
    """Return column, row and visibility in shifted frames; what leaves the picture is `OUTSIDE`, at 0.

    Args:
        traces: of the frames before.
        shifts: by which share of its height and width each frame was moved up and to the left.
    """
    places = traces[..., :2] - shifts[:, :, None, None, ::-1]  # rows and columns to columns and rows
    inside = (traces[..., 2] != OUTSIDE) & (places >= 0).all(axis=-1) & (places < 1).all(axis=-1)
    visibility = np.where(inside, traces[..., 2], OUTSIDE)
    kept = np.where(inside[..., None], places, 0.0)
    return np.concatenate([kept, visibility[..., None]], axis=-1).astype(np.float32)


def _past_actions(windows: Windows, indices: _Indices, offsets: Any) -> dict[str, np.ndarray]:
    """Return past actions in about [-1, 1], and which of them exist."""
    if len(windows.frame_offsets) < 2:
        raise ValueError(
            "an auxiliary target learns the actions executed before now, which one frame does not show; give "
            "processor.frame_offsets=[8,0], say, or take it out of model.auxiliaries"
        )
    actions, exists = windows.past_actions(indices, offsets)
    least, greatest = windows.action_range
    half = np.where(greatest > least, (greatest - least) / 2, 1.0)
    scaled = (actions - (least + greatest) / 2) / half
    return {"past_actions": np.clip(scaled, -_CLIP, _CLIP).astype(np.float32), "past_exists": exists}
