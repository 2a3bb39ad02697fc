"""Every error that seeonce raises on purpose, grouped by what the user does next.

A message is one line: what is wrong, what was expected, what was found, and the command or
setting that helps. The command line prints it and exits with ``exit_code``; ``--debug`` adds
the traceback. Anything that is not a ``SeeonceError`` is a bug of ours.
"""

EXIT_ERROR = 1
EXIT_PARTLY = 3
EXIT_INTERRUPTED = 130


class SeeonceError(Exception):
    """Root of all errors meant for the user."""

    exit_code: int = 1


class InputError(SeeonceError):
    """The user names something else: a recording, a prompt, an option, an image."""


class CheckpointError(SeeonceError):
    """The user picks or repairs a model, or installs a backend for it."""


class StoreError(SeeonceError):
    """The user frees space, fixes permissions, or points SEEONCE_HOME elsewhere."""


class NotEncodedError(SeeonceError):
    """The user runs ``seeonce encode`` first."""


class CannotCheckError(SeeonceError):
    """The verifier lacks what it needs (frames, a model, entries): neither equal nor different."""

    exit_code = 2


class StalePictureError(SeeonceError):
    """A frame's picture is no longer the one that was encoded; the user encodes again."""
