"""The bytes level of verify-cache: every digest of every entry, with no model and no picture."""

from blake3 import blake3

from cache.base.errors import CannotCheckError, StoreError
from cache.base.listener import Listener
from cache.base.text import counted
from cache.check import CheckProgress, checked
from cache.key import EntryKey
from cache.layout import stored_entries, time_text
from cache.manifest import FrameEntry, Manifest, list_manifests, read_manifest
from cache.store import Store
from seeonce.verifier.report import Check

_MAX_AGE_S = 24 * 3600  # what an interrupted run found is believed for so long


def check_recording_bytes(store: Store, manifests: list[Manifest], listener: Listener) -> Check:
    """Check every entry that the manifests of one recording name.

    Raises:
        CannotCheckError: they name none.
    """
    keys = _named_keys(manifests)
    if not keys:
        raise CannotCheckError(f"{manifests[0].recording.id} has no encoded frame: run seeonce encode.")
    return _check(store, manifests, keys, [], "", listener)


def check_store_bytes(store: Store, listener: Listener) -> Check:
    """Check every entry and every manifest of the store, named or not.

    Raises:
        CannotCheckError: there are no entries.
    """
    problems: list[str] = []
    manifests = []
    for ref in list_manifests(store.home, problems.append):
        try:
            manifests.append(read_manifest(ref.path))
        except StoreError as error:
            problems.append(str(error))
    stored = sorted(store.keys(), key=lambda key: key.hex)
    keys = list(dict.fromkeys([*_named_keys(manifests), *stored]))
    if not keys and not problems:
        raise CannotCheckError(f"the store {store.path} holds no entry: run seeonce encode.")
    where = f" and {len(manifests)} manifests, the whole store,"
    return _check(store, manifests, keys, problems, where, listener)


def _check(
    store: Store,
    manifests: list[Manifest],
    keys: list[EntryKey],
    problems: list[str],
    where: str,
    listener: Listener,
) -> Check:
    named = {frame.key: frame for manifest in manifests for frame in manifest.frames}
    problems += [problem for manifest in manifests for problem in _manifest_problems(manifest)]
    with CheckProgress(store, _note(keys), _MAX_AGE_S) as progress:
        before = {entry.key for entry in stored_entries(store.path) if progress.has(entry)} & set(keys)
        for number, (key, reason) in enumerate(checked(store, set(keys) - before), 1 + len(before)):
            if isinstance(reason, StoreError):
                raise reason
            problem = reason or _grid_problem(store, key, named.get(key))
            if problem is not None:
                problems.append(f"entry {key.hex[:12]}: {problem}")
            progress.add(key, is_right=problem is None)
            listener.show("bytes", "entry", number, len(keys))
    words = f"every byte of {counted(len(keys), 'entry')}{where} against its digests"
    if before:
        words += f", {len(before)} of them by the run of {time_text(progress.since_s)} that was interrupted"
    if problems:
        words = f"{counted(len(problems), 'problem')} in {counted(len(keys), 'entry')}{where}".rstrip(",")
    return Check("bytes", not problems, words, len(keys), len(keys), tuple(problems))


def _note(keys: list[EntryKey]) -> str:
    """Name the note of how far the check of these very entries came."""
    hasher = blake3()
    for key in sorted(key.raw for key in keys):
        hasher.update(key)
    return f"check-{hasher.hexdigest()[:32]}.json"


def _grid_problem(store: Store, key: EntryKey, frame: FrameEntry | None) -> str | None:
    info = store.peek(key)
    if info is None:
        return "it changed while it was checked"
    if frame is not None and (info.grid_thw, info.num_tokens) != (frame.grid_thw, frame.num_tokens):
        return "another grid than the manifest names"
    return None


def _named_keys(manifests: list[Manifest]) -> list[EntryKey]:
    return list(dict.fromkeys(frame.key for manifest in manifests for frame in manifest.frames))


def _manifest_problems(manifest: Manifest) -> list[str]:
    num_named = len(manifest.frames) + len(manifest.skipped)
    if manifest.complete and num_named != manifest.recording.num_frames:
        missing = f"the manifest names {num_named} frames of {manifest.recording.num_frames}"
        return [missing, *manifest.problems()]
    return manifest.problems()
