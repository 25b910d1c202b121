"""Which OpenGL draws, and which environment variables about it are wrong; imports neither MuJoCo nor OpenGL.

MuJoCo and Mesa read variables when they are imported or started, and what they say about a wrong one names
neither the variable nor its value. So they are looked at first.
"""

import ctypes
import ctypes.util
import os

APT_LINE = "apt-get install -y --no-install-recommends libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"
_GL, _PLATFORM, _DEVICE = "MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID"
_NO_CHOICE = ("", "glfw", "glx", "enable", "enabled", "on", "true", "1")  # MuJoCo's words on Linux that leave
_SWITCHED_OFF = ("disable", "disabled", "off", "false", "0")  # the choice to us, as these do
_PREFIXES = ("MESA_", "LIBGL_", "GALLIUM_", "EGL_", "__EGL_", "__GLX_")


class NoOpenGL(RuntimeError):
    """No camera can be drawn here; the message names the variable, or the line that installs what lacks."""


def is_installed(backend: str) -> bool:
    """Return whether the libraries of "egl" or "osmesa" are there."""
    if backend == "osmesa":
        return ctypes.util.find_library("OSMesa") is not None
    return _loads("libEGL.so.1") and _loads("libOpenGL.so.0")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def backend() -> str | None:
    """Return what draws: "egl" or "osmesa", that of `MUJOCO_GL`, else EGL if installed, else OSMesa."""
    asked = os.environ.get(_GL, "").lower().strip()
    if asked in ("egl", "osmesa"):
        return asked
    return next((one for one in ("egl", "osmesa") if is_installed(one)), None)


def require_importable() -> None:
    """Check the variable that MuJoCo fails on as soon as it is imported.

    Raises:
        NoOpenGL: `MUJOCO_GL` names nothing, or what is not installed.
    """
    value = os.environ.get(_GL, "")
    asked = value.lower().strip()
    if asked not in ("egl", "osmesa", *_NO_CHOICE, *_SWITCHED_OFF):
        raise NoOpenGL(f"{_GL}={value} names no OpenGL of MuJoCo's; unset it, or give egl or osmesa")
    if asked == "osmesa" and not is_installed("osmesa"):
        raise NoOpenGL(
            f"{_GL}=osmesa, but OSMesa is not installed; unset it to draw with EGL, or run as root: "
            "apt-get install -y libosmesa6"
        )
    if asked == "egl":
        _require_egl()
        _require_platform("egl")


def require_drawable() -> str:
    """Check all that can be checked before OpenGL starts, and return what will draw: "egl" or "osmesa".

    Raises:
        NoOpenGL: a variable is wrong, or no OpenGL is installed.
    """
    require_importable()
    chosen = backend()
    if chosen is None:
        raise NoOpenGL(
            f"neither EGL nor OSMesa is installed, so no camera can be drawn; run as root: {APT_LINE}"
        )
    _require_platform(chosen)
    device = os.environ.get(_DEVICE)
    if chosen == "egl" and device is not None and not device.isdecimal():
        raise NoOpenGL(f"{_DEVICE}={device!r} is no number of a device; unset it, or give 0")
    return chosen


def require_device(num_devices: int) -> None:
    """Check the number of the EGL device, now that it is known how many there are.

    Raises:
        NoOpenGL: there is none of that number.
    """
    device = os.environ.get(_DEVICE)
    if device is not None and int(device) >= num_devices:
        raise NoOpenGL(
            f"{_DEVICE}={device}, but EGL devices here go from 0 to {num_devices - 1}; unset it, or give "
            "one of these"
        )


def does_not_start(chosen: str, error: Exception) -> NoOpenGL:
    """Return the error for an OpenGL that is installed and does not start: with the variables about it."""
    names = [name for name in os.environ if name == _DEVICE or name.startswith(_PREFIXES)]
    if names:
        listed = ", ".join(f"{name}={os.environ[name]}" for name in sorted(names))
        return NoOpenGL(f"OpenGL through {chosen} does not start ({error}); it is set {listed}: unset that")
    return NoOpenGL(
        f"OpenGL through {chosen} does not start ({error}); if drivers are missing, run as root: {APT_LINE}"
    )


def _require_egl() -> None:
    if not is_installed("egl"):
        raise NoOpenGL(f"{_GL}=egl, but EGL is not installed; run as root: {APT_LINE}")


def _require_platform(chosen: str) -> None:
    platform = os.environ.get(_PLATFORM, "")
    if platform and platform.lower() != chosen:
        raise NoOpenGL(f"{_PLATFORM}={platform}, but frames are drawn with {chosen}; unset it")
