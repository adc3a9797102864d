"""The one family of exceptions q8c raises on purpose; every message is one line that says what to do next."""
from __future__ import annotations

from collections.abc import Iterable


class Error(Exception):
    """Base of everything q8c raises on purpose."""


class UnsupportedError(Error):
    """The model uses something q8c cannot compile; the message lists all of it.

    `inputs` are the model's inputs whose elements would have to be constants for it.
    """

    def __init__(self, message: str, inputs: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.inputs = frozenset(inputs)


class CompileError(Error):
    """The model, graph text or option is wrong, or a compiler stage refused it."""


class OptionError(CompileError):
    """An option of a compilation is unknown, or has a value that means nothing, or nothing for this model."""


class ArtifactError(Error):
    """A compiled file is damaged, altered, of another version, or does not fit this machine."""


class InputError(Error):
    """A feed given to a run does not fit the model's signature."""
