"""Which OpenGL is chosen, and what is said when there is none."""

from __future__ import annotations

import ctypes.util

import pytest

from ki_sim.errors import SimError
from ki_sim.world import gl


def test_egl_comes_before_osmesa(monkeypatch):
    monkeypatch.delenv('MUJOCO_GL', raising=False)
    monkeypatch.setattr(ctypes.util, 'find_library', lambda name: f'lib{name}.so')
    assert gl.candidates() == ('egl', 'osmesa')


def test_osmesa_is_taken_where_egl_is_missing(monkeypatch):
    monkeypatch.delenv('MUJOCO_GL', raising=False)
    monkeypatch.setattr(ctypes.util, 'find_library', lambda name: None if name == 'EGL' else 'x')
    assert gl.candidates() == ('osmesa',)


def test_the_environment_decides_when_it_names_a_headless_backend(monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', 'OSMesa')
    assert gl.candidates() == ('osmesa',)


def test_without_a_library_the_packages_are_named(monkeypatch):
    monkeypatch.delenv('MUJOCO_GL', raising=False)
    monkeypatch.setattr(ctypes.util, 'find_library', lambda name: None)
    with pytest.raises(SimError, match=r'libegl1 libgl1-mesa-dri.*libosmesa6'):
        gl.candidates()


def test_rendering_switched_off_is_said(monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', 'off')
    with pytest.raises(SimError, match='unset it'):
        gl.candidates()


def test_a_backend_that_fails_is_reported_with_its_reason(monkeypatch):
    monkeypatch.setattr(gl, '_context', None)
    monkeypatch.setattr(gl, 'candidates', lambda: ('egl',))

    def broken(name: str) -> None:
        raise RuntimeError('no device')

    monkeypatch.setattr(gl, '_create', broken)
    with pytest.raises(SimError, match=r'egl: RuntimeError: no device.*apt-get install'):
        gl.make_current()
