"""Offscreen pictures of a MuJoCo scene on a CPU: how fine, on which OpenGL, and how a context ends.

`Renderer` owns one OpenGL context for the life of an environment and draws any camera at any size up to the
one it was made for; nothing is recreated between frames. EGL is preferred. OSMesa is the fallback, with one
trap: a context that is freed while another is alive leaves the other drawing stale memory without an error,
so `close` one renderer before making the next.
"""

import atexit
import ctypes
import ctypes.util
import functools
import os
import weakref
from typing import Any, Literal, get_args

import mujoco
import numpy as np
from jaxtyping import UInt8

RenderQuality = Literal["fast", "full"]
_SHARED_SIZE = 64  # pixels; frames are drawn into buffers of their own, so any will do
APT_LINE = "apt-get install -y --no-install-recommends libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"


class NoOpenGL(RuntimeError):
    """No OpenGL library can draw on this machine; the message holds the line that installs one."""


def apply_quality(model: mujoco.MjModel, quality: str) -> None:
    """Set the model-level render settings. Must precede the making of a `Renderer`.

    "fast" leaves out the shadow map, multisampling and reflections, which cost 10 to 50 times as much as
    the rest on a software OpenGL; "full" has all three.

    Raises:
        ValueError: the quality is neither.
    """
    if quality not in get_args(RenderQuality):
        raise ValueError(f"render_quality {quality!r} is unknown; choose from {get_args(RenderQuality)}")
    if quality == "fast":
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        model.mat_reflectance[:] = 0
    else:
        model.vis.quality.shadowsize = 2048
        model.vis.quality.offsamples = 4


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _available_backend() -> str:
    asked = os.environ.get("MUJOCO_GL", "").lower()
    if asked in ("egl", "osmesa"):
        return asked
    if _loads("libEGL.so.1") and _loads("libOpenGL.so.0"):
        return "egl"
    if ctypes.util.find_library("OSMesa"):
        return "osmesa"
    raise NoOpenGL(f"neither EGL nor OSMesa is installed, so no camera can be drawn; run as root: {APT_LINE}")


def make_gl_context(width: int, height: int) -> Any:
    """Return a MuJoCo `GLContext`: the one that `MUJOCO_GL` names, else EGL if installed, else OSMesa.

    Sets `LP_NUM_THREADS=0` (Mesa then draws in the calling thread, the fastest way with one process per core)
    and `MUJOCO_GL`, unless the user has set them; both must be in place before OpenGL starts.

    Raises:
        NoOpenGL: there is no such library, or it does not start.
    """
    os.environ.setdefault("LP_NUM_THREADS", "0")
    backend = _available_backend()
    os.environ["MUJOCO_GL"] = backend  # libmujoco reads it when it loads the OpenGL functions
    try:
        if backend == "egl":
            from mujoco.egl import GLContext
        else:
            from mujoco.osmesa import GLContext
        context = GLContext(width, height)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise NoOpenGL(
            f"OpenGL through {backend} does not start ({error}); run as root: {APT_LINE}"
        ) from error
    _close_all_at_exit()
    return context


_open_renderers: "weakref.WeakSet[Renderer]" = weakref.WeakSet()


@functools.cache
def _close_all_at_exit() -> None:
    """Have renderers that nobody closed freed before OpenGL itself ends, which otherwise prints errors."""
    atexit.register(_close_all)


def _close_all() -> None:
    for renderer in list(_open_renderers):
        renderer.close()
    if _shared_context.cache_info().currsize:
        _shared_context().free()


@functools.cache
def _shared_context() -> Any:
    """Return the context of all renderers of this process that share one; it lives as long as the process."""
    return make_gl_context(_SHARED_SIZE, _SHARED_SIZE)


class Renderer:
    """Draws cameras of one model into numpy arrays.

    Args:
        model: the compiled model; call `apply_quality` on it first.
        max_height, max_width: size of the largest frame that will be requested, in pixels.
        share_context: use one OpenGL context with all others of this process that ask for it, so that the
            driver compiles its shaders once (0.25 s of CPU time for each context). All must then be used in
            one thread.
    """

    def __init__(
        self, *, model: mujoco.MjModel, max_height: int, max_width: int, share_context: bool = False
    ) -> None:
        self._model = model
        model.vis.global_.offheight = max_height
        model.vis.global_.offwidth = max_width
        self._max_size = (max_height, max_width)
        self._shares_context = share_context
        self._gl: Any = _shared_context() if share_context else make_gl_context(max_width, max_height)
        self._gl.make_current()
        self._context: mujoco.MjrContext | None = mujoco.MjrContext(
            model, mujoco.mjtFontScale.mjFONTSCALE_100.value
        )
        self._scene = mujoco.MjvScene(model, maxgeom=max(100, model.ngeom + 20))
        self._options = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturb = mujoco.MjvPerturb()
        _open_renderers.add(self)

    def render(
        self, data: mujoco.MjData, *, camera_id: int, height: int, width: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Return the RGB frame of a fixed camera.

        Raises:
            ValueError: the frame is larger than the size that the renderer was made for.
            RuntimeError: the renderer is closed.
        """
        if self._context is None:
            raise RuntimeError("this renderer is closed; make another environment to draw again")
        if height > self._max_size[0] or width > self._max_size[1]:
            raise ValueError(f"a frame of {height}x{width} exceeds the renderer's {self._max_size}")
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._camera.fixedcamid = camera_id
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._options,
            self._perturb,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        frame = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(frame, None, viewport, self._context)
        return np.ascontiguousarray(frame[::-1])

    def close(self) -> None:
        """Free the OpenGL context. Safe to call more than once."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._context = None
            if not self._shares_context:
                self._gl.free()
