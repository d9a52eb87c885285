"""Headless OpenGL for MuJoCo: EGL where it works, OSMesa otherwise, or a sentence with the fix."""

from __future__ import annotations

import atexit
import ctypes.util
import importlib
import os
from typing import Any

from ki_sim.errors import SimError

BACKENDS = ('egl', 'osmesa')
FIX = (
    'install one with `apt-get install libegl1 libgl1-mesa-dri` (EGL) or `apt-get install libosmesa6` (OSMesa), '
    'or set MUJOCO_GL to egl or osmesa to see why that one fails'
)

_context: Any = None
_backend = ''


def candidates() -> tuple[str, ...]:
    """Backends to try, in order: what MUJOCO_GL names, or else those whose library the linker finds.

    Raises SimError when MUJOCO_GL names something that cannot render without a screen, or no library is found.
    """
    wanted = os.environ.get('MUJOCO_GL', '').strip().lower()
    if wanted in BACKENDS:
        return (wanted,)
    if wanted in ('disable', 'disabled', 'off', 'false', '0'):
        raise SimError(f'MUJOCO_GL={wanted} switches rendering off, and this needs cameras: unset it')
    found = tuple(name for name, library in (('egl', 'EGL'), ('osmesa', 'OSMesa')) if ctypes.util.find_library(library))
    if not found:
        raise SimError(f'no OpenGL library for headless rendering was found (neither libEGL nor libOSMesa): {FIX}')
    return found


def make_current() -> str:
    """Make this process's one offscreen context current and return its backend's name.

    The context is made at the first call and kept for the life of the process: scenes come and go by the thousand,
    and a context costs more than a scene. One thread at a time may draw: it releases the context before the next.
    """
    global _context, _backend
    if _context is None:
        reasons = []
        for name in candidates():
            try:
                _context, _backend = _create(name), name
                atexit.register(_free)  # before the driver is taken down, which a destructor would come after
                break
            except Exception as error:  # PyOpenGL raises anything from AttributeError to GLError here
                reasons.append(f'{name}: {type(error).__name__}: {error}')
        else:
            raise SimError(f'no OpenGL context could be made ({"; ".join(reasons)}): {FIX}')
    _context.make_current()
    return _backend


def release() -> None:
    """Let go of the context, so that another thread may make it current."""
    if _context is None:
        return
    if _backend == 'egl':
        from mujoco import egl

        egl.EGL.eglReleaseThread()
    else:
        from OpenGL import osmesa

        osmesa.OSMesaMakeCurrent(None, None, 0, 0, 0)


def _free() -> None:
    global _context
    if _context is not None:
        _context.free()
        _context = None


def _create(name: str) -> Any:
    """One context of a backend. PyOpenGL picks its platform at its first import, from the environment."""
    os.environ['PYOPENGL_PLATFORM'] = name
    os.environ.setdefault('MUJOCO_GL', name)
    # PyOpenGL checks for errors after every call by default; MuJoCo draws on its own and needs none of that.
    return importlib.import_module(f'mujoco.{name}').GLContext(2048, 2048)  # the largest picture, see render.MAX_SIZE
