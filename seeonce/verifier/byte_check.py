"""The bytes level of verify-cache: every digest of every entry, with no model and no picture.

Owns which entries are looked at, by how many threads, and where an interrupted check goes on. The
checks themselves are ``cache.store``'s.
"""

import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from cache.errors import CannotCheckError, StoreError
from cache.home import Home
from cache.key import EntryKey
from cache.manifest import FrameEntry, Manifest, list_manifests, read_manifest
from cache.store import Store
from seeonce.verifier.report import Check, Listener
from seeonce.verifier.resume import Checked

# Reading, crc32c and BLAKE3 take turns within one entry, so entries side by side keep the disk busy.
_NUM_THREADS = min(4, os.cpu_count() or 1)


def check_recording_bytes(home: Home, store: Store, manifests: list[Manifest], listener: Listener) -> Check:
    """Check every entry that the manifests of one recording name.

    Raises:
        CannotCheckError: they name none.
    """
    named = _named(manifests)
    if not named:
        raise CannotCheckError(f"{manifests[0].recording.id} has no encoded frame: run seeonce encode.")
    return _check(home, store, manifests, named, list(named), [], "", listener)


def check_store_bytes(home: Home, store: Store, listener: Listener) -> Check:
    """Check every entry and every manifest of the store, named or not.

    Raises:
        CannotCheckError: there are none.
    """
    problems: list[str] = []
    manifests = []
    for ref in list_manifests(home, problems.append):
        try:
            manifests.append(read_manifest(ref.path))
        except StoreError as error:
            problems.append(str(error))
    named = _named(manifests)
    keys = list(dict.fromkeys([*named, *sorted(store.keys(), key=lambda key: key.hex)]))
    if not keys and not problems:
        raise CannotCheckError(f"the store {store.path} holds no entry: run seeonce encode.")
    where = f" and {len(manifests)} manifests, the whole store,"
    return _check(home, store, manifests, named, keys, problems, where, listener)


def _check(
    home: Home,
    store: Store,
    manifests: list[Manifest],
    named: dict[EntryKey, FrameEntry],
    keys: list[EntryKey],
    problems: list[str],
    where: str,
    listener: Listener,
) -> Check:
    problems += [problem for manifest in manifests for problem in manifest_problems(manifest)]
    listener.begin(len(keys), "bytes", "entry")
    with Checked.of(home, store, keys) as checked:
        left = [key for key in keys if not checked.has(key)]
        listener.advance(len(keys) - len(left))
        for key, problem in _scanned(store, left, named):
            if problem is None:
                checked.add(key)
            else:
                problems.append(f"entry {key.hex[:12]}: {problem}")
            listener.advance()
        checked.finish()
    words = f"every byte of {len(keys)} entries{where} against its digests"
    if len(left) < len(keys):
        words += f", {len(keys) - len(left)} of them by the run of {checked.since} that was interrupted"
    if problems:
        words = f"{len(problems)} problems in {len(keys)} entries{where}".rstrip(",")
    return Check("bytes", not problems, words, len(keys), len(keys), tuple(problems))


def _scanned(
    store: Store, keys: list[EntryKey], named: dict[EntryKey, FrameEntry]
) -> Iterator[tuple[EntryKey, str | None]]:
    """Yield each key with what is wrong with its entry, as they are done; few are under way at a time."""
    waiting = iter(keys)
    running: dict[Future[str | None], EntryKey] = {}
    with ThreadPoolExecutor(_NUM_THREADS, "seeonce-bytes") as threads:
        while True:
            for key in islice(waiting, 2 * _NUM_THREADS - len(running)):
                running[threads.submit(_problem, store, key, named.get(key))] = key
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()


def _problem(store: Store, key: EntryKey, frame: FrameEntry | None) -> str | None:
    found = store.check(key)
    if found is not None:
        return found.reason
    info = store.peek(key)
    if info is None:
        return "it changed while it was checked"
    if frame is not None and (info.grid_thw, info.num_tokens) != (frame.grid_thw, frame.num_tokens):
        return "another grid than the manifest names"
    return None


def _named(manifests: list[Manifest]) -> dict[EntryKey, FrameEntry]:
    return {frame.key: frame for manifest in manifests for frame in manifest.frames}


def manifest_problems(manifest: Manifest) -> list[str]:
    """Say what does not fit together in a manifest, one line each."""
    num_named = len(manifest.frames) + len(manifest.skipped)
    if manifest.complete and num_named != manifest.recording.num_frames:
        missing = f"the manifest names {num_named} frames of {manifest.recording.num_frames}"
        return [missing, *manifest.problems()]
    return manifest.problems()
