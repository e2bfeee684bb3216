"""Errors, which say who has to act, and secrets. What every plugin needs."""

from typing import Optional

from componentize_py_types import Err
from wit_world.imports import secrets
from wit_world.imports.kaizen_plugin_types import (
    Error_Config,
    Error_Internal,
    Error_Rejected,
    Error_Unavailable,
    Unavailable,
)


def config(message: str) -> Err:
    """The configuration cannot work; an operator must change it. Never retried."""
    return Err(Error_Config(message))


def rejected(message: str) -> Err:
    """The far side refused this piece of work. Never retried."""
    return Err(Error_Rejected(message))


def unavailable(message: str, retry_after: Optional[int] = None) -> Err:
    """Worth another attempt, after so many milliseconds where the far side said so."""
    return Err(Error_Unavailable(Unavailable(message, retry_after)))


def internal(message: str) -> Err:
    """A defect of the plugin itself. Never retried."""
    return Err(Error_Internal(message))


def secret(name: str) -> str:
    """Stands for a secret in a request's header; the server puts the value in, only towards the slot's hosts."""
    return "{{secret:" + name + "}}"


def revealed(name: str) -> str:
    """A secret that the plugin must compute with."""
    try:
        return secrets.reveal(name)
    except Err as error:
        raise config(f"secret `{name}`: {error.value}") from None
