"""verify-cache: holds the store against live encoding and says what was proved. The store is only read."""

from cache.base.home import Home
from cache.base.listener import Listener
from cache.leases import held_lease
from cache.store import Store
from seeonce.verifier.controls import with_controls
from seeonce.verifier.levels import VerifyOptions, check_recording, check_store
from seeonce.verifier.report import Report

__all__ = ["VerifyOptions", "verify", "verify_store"]


def verify(home: Home, options: VerifyOptions, listener: Listener) -> Report:
    """Check a recording at a level, and the check itself by controls. What cannot be checked is reported.

    Raises:
        CannotCheckError: the recording has no encoded frame.
        NotEncodedError: it is not encoded, or not by this model's vision tower.
    """
    with held_lease(Store.open(home, create=False), f"verify-cache {options.recording}"):
        report = check_recording(home, options, listener)
        return with_controls(report, home, options, listener) if options.controls else report


def verify_store(home: Home, listener: Listener) -> Report:
    """Check every byte of every entry and manifest of the store.

    Raises:
        CannotCheckError: there is nothing in it.
        NotEncodedError: there is no store.
    """
    with held_lease(Store.open(home, create=False), "verify-cache --all"):
        return check_store(home, listener)
