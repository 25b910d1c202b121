"""Offscreen pictures of a MuJoCo scene on a CPU: how fine, from which thread, and how a context ends.

`Renderer` owns one OpenGL context for the life of an environment and draws any camera at any size up to the
one it was made for; nothing is recreated between frames. A context is current only while it draws, so any
thread may draw, one at a time with each context. EGL is preferred (opengl.py chooses). OSMesa is the
fallback, with one trap: a context that is freed while another is alive leaves the other drawing stale memory
without an error, so `close` one renderer before making the next.
"""

import atexit
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import mujoco
import numpy as np
from jaxtyping import Float32, UInt8

from envs.opengl import NoOpenGL, does_not_start, require_device, require_drawable

RenderQuality = Literal["fast", "full"]
_SHARED_SIZE = 64  # pixels; frames are drawn into buffers of their own, so any will do
_STARTING = threading.Lock()  # OpenGL is started, and contexts are made, by one thread at a time


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


class GlContext:
    """An OpenGL context that is current in a thread only while it is used there.

    It is the one that `MUJOCO_GL` names, else EGL if installed, else OSMesa. Sets `LP_NUM_THREADS=0` (Mesa
    then draws in the calling thread, the fastest way with one process per core), `MUJOCO_GL` and
    `PYOPENGL_PLATFORM`, unless the user has set them; all must be in place before OpenGL starts.

    Args:
        width, height: of OSMesa's buffer, in pixels; EGL has none.

    Raises:
        NoOpenGL: there is no such library, or it does not start; the message names the variables about it.
    """

    def __init__(self, width: int, height: int) -> None:
        self.backend = require_drawable()
        os.environ.setdefault("LP_NUM_THREADS", "0")
        os.environ["MUJOCO_GL"] = self.backend  # libmujoco reads it when it loads the OpenGL functions
        os.environ["PYOPENGL_PLATFORM"] = self.backend
        self._lock = threading.RLock()
        from OpenGL.error import Error

        try:
            with _STARTING:
                self._gl, self._release = _open_context(self.backend, width, height)
        except (ImportError, AttributeError, RuntimeError, ValueError, Error) as error:
            if isinstance(error, NoOpenGL):
                raise
            raise does_not_start(self.backend, error) from error
        _close_all_at_exit()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context that of the calling thread; other threads wait until this one is done with it."""
        with self._lock:
            self._gl.make_current()
            try:
                yield
            finally:
                self._release()

    def free(self) -> None:
        """Free the context."""
        with self._lock:
            self._gl.free()


def _open_context(backend: str, width: int, height: int) -> tuple[Any, Callable[[], Any]]:
    """Return a context of MuJoCo's, and what makes no context that of the calling thread."""
    if backend == "egl":
        import mujoco.egl
        from mujoco.egl import egl_ext

        require_device(len(egl_ext.eglQueryDevicesEXT()))
        nothing = (egl_ext.EGL_NO_SURFACE, egl_ext.EGL_NO_SURFACE, egl_ext.EGL_NO_CONTEXT)
        context = mujoco.egl.GLContext(width, height)
        return context, lambda: egl_ext.eglMakeCurrent(mujoco.egl.EGL_DISPLAY, *nothing)
    from mujoco.osmesa import GL, GLContext, osmesa

    return GLContext(width, height), lambda: osmesa.OSMesaMakeCurrent(None, None, GL.GL_FLOAT, 0, 0)


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
def _shared_context() -> GlContext:
    """Return the context of all renderers of this process that share one; it lives as long as the process."""
    return GlContext(_SHARED_SIZE, _SHARED_SIZE)


class Renderer:
    """Draws cameras of one model into numpy arrays.

    Args:
        model: the compiled model; call `apply_quality` on it first.
        max_height, max_width: size of the largest frame that will be requested, in pixels.
        share_context: use one OpenGL context with all others of this process that ask for it, so that the
            driver compiles its shaders once (0.25 s of CPU time for each context).

    Raises:
        NoOpenGL: nothing can draw here.
    """

    def __init__(
        self, *, model: mujoco.MjModel, max_height: int, max_width: int, share_context: bool = False
    ) -> None:
        self._model = model
        model.vis.global_.offheight = max_height
        model.vis.global_.offwidth = max_width
        self._max_size = (max_height, max_width)
        self._shares_context = share_context
        self._gl = _shared_context() if share_context else GlContext(max_width, max_height)
        self._context: mujoco.MjrContext | None = self._new_context()
        self._scene = mujoco.MjvScene(model, maxgeom=max(100, model.ngeom + 20))
        self._options = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturb = mujoco.MjvPerturb()
        _open_renderers.add(self)

    def _new_context(self) -> mujoco.MjrContext:
        try:
            with self._gl.current():
                return mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except mujoco.FatalError as error:
            if not self._shares_context:
                self._gl.free()
            raise does_not_start(self._gl.backend, error) from error

    def render(
        self, data: mujoco.MjData, *, camera_id: int, height: int, width: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Return the RGB frame of a fixed camera.

        Raises:
            ValueError: the frame is larger than the size that the renderer was made for.
            RuntimeError: the renderer is closed.
        """
        frame = np.empty((height, width, 3), dtype=np.uint8)
        self._draw(data, camera_id=camera_id, frame=frame, depth=None)
        return np.ascontiguousarray(frame[::-1])

    def render_with_depth(
        self, data: mujoco.MjData, *, camera_id: int, height: int, width: int
    ) -> tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "h w"]]:
        """Return the frame of a fixed camera, and the distance of each pixel from the camera's plane [m].

        The distance is infinite where nothing is. Both come from one drawing.

        Raises:
            ValueError, RuntimeError: as in `render`.
        """
        frame = np.empty((height, width, 3), dtype=np.uint8)
        depth = np.empty((height, width), dtype=np.float32)
        self._draw(data, camera_id=camera_id, frame=frame, depth=depth)
        extent = float(self._model.stat.extent)
        near, far = self._model.vis.map.znear * extent, self._model.vis.map.zfar * extent
        distance = near / (1.0 - depth.astype(np.float64) * (1.0 - near / far))  # OpenGL keeps its inverse
        distance = np.where(depth < 1.0, distance, np.inf).astype(np.float32)
        return np.ascontiguousarray(frame[::-1]), distance[::-1]

    def _draw(
        self,
        data: mujoco.MjData,
        *,
        camera_id: int,
        frame: UInt8[np.ndarray, "h w 3"],
        depth: Float32[np.ndarray, "h w"] | None,
    ) -> None:
        """Fill the colors of a picture and, if wanted, its depth, from the lowest row up."""
        height, width = frame.shape[:2]
        if self._context is None:
            raise RuntimeError("this renderer is closed; make another environment to draw again")
        if height > self._max_size[0] or width > self._max_size[1]:
            raise ValueError(f"a frame of {height}x{width} exceeds the renderer's {self._max_size}")
        with self._gl.current():
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
            mujoco.mjr_readPixels(frame, depth, viewport, self._context)

    def close(self) -> None:
        """Free the OpenGL context. Safe to call more than once."""
        if self._context is not None:
            with self._gl.current():
                self._context.free()
            self._context = None
            if not self._shares_context:
                self._gl.free()
