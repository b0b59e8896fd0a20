"""Off-screen rendering of a MuJoCo scene, on EGL or, where that does not work, on OSMesa."""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import importlib
import os
import weakref
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

BACKENDS = ("egl", "osmesa", "glfw")
_EGL_PLATFORM_DEVICE_EXT = 0x313F
_MAX_DEVICES = 16


def select_backend() -> str:
    """Return the OpenGL backend to use: MUJOCO_GL if set, else one that works.

    Asks EGL itself, without PyOpenGL: once PyOpenGL has tried one platform there is no way back.

    Raises:
        ValueError: MUJOCO_GL names no backend.
        OSError: neither EGL nor OSMesa works; names the packages to install.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen:
        if chosen not in BACKENDS:
            raise ValueError(f"MUJOCO_GL: expected one of {BACKENDS}, got {chosen!r}")
        return chosen
    if _has_egl_device():
        return "egl"
    if ctypes.util.find_library("OSMesa"):
        return "osmesa"
    raise OSError(
        "rendering: neither EGL nor OSMesa works on this machine; install one with "
        "`apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri` or `apt-get install libosmesa6`"
    )


def _has_egl_device() -> bool:
    """Return whether EGL can open at least one device without a display."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    addresses = [
        egl.eglGetProcAddress(name)
        for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")
    ]
    if None in addresses:
        return False
    pointer = ctypes.c_void_p
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, pointer, pointer)(addresses[0])
    get_display = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(addresses[1])
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    devices = (pointer * _MAX_DEVICES)()
    num_devices = ctypes.c_int()
    if not query_devices(_MAX_DEVICES, devices, ctypes.byref(num_devices)):
        return False
    displays = [
        get_display(_EGL_PLATFORM_DEVICE_EXT, device, None)
        for device in devices[: num_devices.value]
    ]
    return any(display and egl.eglInitialize(display, None, None) for display in displays)


class Renderer:
    """Draws `model` in a context of its own; use it in the thread that made it.

    `mujoco.Renderer` fixes the backend at the first import of mujoco; this one at creation.

    Raises:
        ValueError: the image is larger than the model's off-screen buffer.
        OSError: no OpenGL backend works.
    """

    def __init__(self, model: mujoco.MjModel, *, height: int, width: int, shadows: bool) -> None:
        limit = (int(model.vis.global_.offheight), int(model.vis.global_.offwidth))
        if not (1 <= height <= limit[0] and 1 <= width <= limit[1]):
            raise ValueError(f"image_hw: expected 1 ... {limit}, got {(height, width)}")
        self._model = model
        self._cameras = {model.camera(i).name: i for i in range(model.ncam)}
        self._context, self._draw = _make_contexts(model, height, width)
        self._finalizer = weakref.finalize(self, _free, self._context, self._draw)
        # At interpreter exit before mujoco, whose exit function this one comes after, ends EGL.
        atexit.register(self._finalizer)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._draw)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._option = mujoco.MjvOption()
        self._rect = mujoco.MjrRect(0, 0, width, height)

    def render(self, data: mujoco.MjData, camera: str) -> NDArray[np.uint8]:
        """RGB image (H, W, 3) from the named camera.

        Raises:
            ValueError: there is no such camera.
        """
        if camera not in self._cameras:
            raise ValueError(
                f"camera: expected one of the scene, got {camera!r}, "
                f"available: {list(self._cameras)}"
            )
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = self._cameras[camera]
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._option,
            None,
            view,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        self._context.make_current()
        mujoco.mjr_render(self._rect, self._scene, self._draw)
        image_HW3 = np.empty((self._rect.height, self._rect.width, 3), np.uint8)
        mujoco.mjr_readPixels(image_HW3, None, self._rect, self._draw)
        return np.ascontiguousarray(image_HW3[::-1])  # OpenGL's first row is the lowest

    def close(self) -> None:
        atexit.unregister(self._finalizer)
        self._finalizer()


def _free(context: Any, draw: mujoco.MjrContext) -> None:
    context.make_current()
    draw.free()
    context.free()


def _make_contexts(model: mujoco.MjModel, height: int, width: int) -> tuple[Any, Any]:
    """The OpenGL context, made current, and MuJoCo's drawing state in it."""
    backend = select_backend()
    try:
        context = importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
        context.make_current()
        return context, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    except (ImportError, AttributeError, OSError, mujoco.FatalError) as error:
        # PyOpenGL says AttributeError when the library behind a platform is absent.
        raise OSError(
            f"rendering: MUJOCO_GL={backend} does not work here ({error}); available: {BACKENDS}"
        ) from error
