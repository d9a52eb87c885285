"""The base of every error of the project, and how a value is shown in one."""

from __future__ import annotations

import reprlib


class KiError(Exception):
    """Base of every error that is told to a person as one sentence."""


class ConfigError(KiError):
    """A configuration file, or one of its values, that cannot be used."""


def shown(value: object) -> str:
    """`value` as a person should see it in an error: quoted, and never longer than a line."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python refuses to spell an integer of more than 4300 digits
        return f'{type(value).__name__} of too many digits to show'


def first_line(error: BaseException) -> str:
    """What an error of a library says, without its stack."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlevel = 3
