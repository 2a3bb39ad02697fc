"""Controls: faults are put into a copy of the store, and verify-cache itself must object to each.

Owns which copies are made, what is run over them and what counts as an objection. A verifier that cannot
fail proves nothing; so the unchanged copy must pass, and a fault that is not objected to is a failure.
"""

import io
import json
import os
import random
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cache.base.canonical_json import seal
from cache.base.errors import EXIT_INTERRUPTED, CannotCheckError
from cache.base.files import Durability
from cache.base.home import Home
from cache.entry import CHUNK_NAME, METADATA_NAME, EntryInfo, Features
from cache.key import EncoderSpec, EntryKey, entry_key
from cache.layout import FRAMES, group_name
from cache.manifest import Manifest, SkippedFrame, manifest_path, manifest_to_json, write_manifest
from cache.pixel_index import PixelIndex
from cache.store import Store
from checkpoint import backend
from checkpoint.config import read_config
from checkpoint.folder import CheckpointFolder, find_folder
from checkpoint.identity import encoder_spec
from seeonce.runs.recording import Selected
from seeonce.verifier.compare import same_provenance
from seeonce.verifier.report import ControlResult, Level, Listener
from seeonce.verifier.sample import Group

Found = TypeVar("Found")

_LEFT_OUT = "left out of this copy"
_CHANGED_WEIGHT = "patch_embed.proj.weight"
_SAFETENSORS_TYPES = {"F32": "<u4", "BF16": "<u2", "F16": "<u2"}


@dataclass(frozen=True, slots=True)
class CopiedStore:
    """A home of its own whose store holds the entries of ``groups`` and one manifest of them."""

    home: Home
    store: Store
    manifest: Manifest
    groups: list[Group]

    def features(self, group: Group) -> Features:
        """Return the stored features of an entry."""
        return _there(self.store.read(group[0].key), group)

    def info(self, group: Group) -> EntryInfo:
        """Return what an entry says about itself."""
        return _there(self.store.peek(group[0].key), group)

    def entry_folder(self, key: EntryKey) -> Path:
        """Return where an entry lies."""
        return self.store.path / FRAMES / group_name(key) / key.hex

    def put(self, group: Group, features: Features) -> None:
        """Write other features under an entry's key, as a wrong encoder would have: every digest fits."""
        info = self.info(group)
        shutil.rmtree(self.entry_folder(group[0].key))
        self.store.write(info.pixels, info.encoder, features, info.provenance)

    def put_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest, also by one that does not fit together."""
        path = manifest_path(self.home, manifest.recording.id, manifest.encoder.encoder_id)
        path.write_bytes(seal(manifest_to_json(manifest)))

    def give_to(self, encoder: EncoderSpec) -> None:
        """Claim that every entry was made by another encoder: its keys, with the features there are."""
        shutil.rmtree(
            manifest_path(self.home, self.manifest.recording.id, self.manifest.encoder.encoder_id).parent
        )
        for group in self.groups:
            features, info = self.features(group), self.info(group)
            self.store.write(info.pixels, encoder, features, info.provenance)
        frames = tuple(
            replace(frame, key=entry_key(frame.pixels, encoder.encoder_id)) for frame in self.manifest.frames
        )
        write_manifest(self.home, replace(self.manifest, encoder=encoder, frames=frames), Durability.none)


def copy_store(store: Store, manifest: Manifest, groups: list[Group], to: Path) -> CopiedStore:
    """Copy the entries of ``groups``, as they lie on disk, and what the manifest says of their frames."""
    home = Home(to)
    copied = Store.open(home, durability=Durability.none)
    for group in groups:
        key = group[0].key
        shutil.copytree(
            store.path / FRAMES / group_name(key) / key.hex, copied.path / FRAMES / group_name(key) / key.hex
        )
    kept = {frame.index for group in groups for frame in group}
    left_out = [
        SkippedFrame(frame.index, frame.timestamp_s, frame.source, _LEFT_OUT)
        for frame in manifest.frames
        if frame.index not in kept
    ]
    partly = replace(
        manifest,
        frames=tuple(frame for frame in manifest.frames if frame.index in kept),
        skipped=tuple(sorted([*manifest.skipped, *left_out], key=lambda frame: frame.index)),
    )
    write_manifest(home, partly, Durability.none)
    return CopiedStore(home, copied, partly, groups)


def copy_again(pristine: CopiedStore, to: Path) -> CopiedStore:
    """Copy a copy; its files are shared where the disk allows it, and faults replace them whole."""
    shutil.copytree(pristine.home.path, to, copy_function=_linked)
    home = Home(to)
    return replace(pristine, home=home, store=Store.open(home, create=False, durability=Durability.none))


def changed_weights(folder: CheckpointFolder, to: Path) -> Path:
    """Return a copy of a checkpoint, of the same name, one of whose vision weights is another."""
    found = [file for file in sorted(folder.path.glob("*.safetensors")) if _tensor(file) is not None]
    if not found:
        raise CannotCheckError(f"no vision weight ending in {_CHANGED_WEIGHT} is stored as floating point")
    if shutil.disk_usage(to.parent).free < 2 * found[0].stat().st_size:
        raise CannotCheckError(f"no room to copy {found[0].name} ({found[0].stat().st_size / 1e9:.1f} GB)")
    changed = _links(folder.path, to / folder.path.name, {found[0].name})
    file = changed / found[0].name
    shutil.copyfile(found[0], file)
    tensor = _tensor(file)
    if tensor is not None:
        dtype, start, stop = tensor
        values = np.memmap(file, dtype, "r+", start, ((stop - start) // np.dtype(dtype).itemsize,))
        values[:] = np.roll(values, 1)
        values.flush()
    return changed


def changed_preprocessing(folder: CheckpointFolder, to: Path) -> Path:
    """Return a copy of a checkpoint, of the same name, that normalises pictures by another mean."""
    names = ("preprocessor_config.json", "processor_config.json")
    changed = _links(folder.path, to / folder.path.name, set(names))
    for name in names:
        path = folder.path / name
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if name == names[0]:
            settings["image_mean"] = [0.4, 0.5, 0.6]
        elif "image_processor" in settings:
            settings["image_processor"]["image_mean"] = [0.4, 0.5, 0.6]
        if settings:
            (changed / name).write_text(json.dumps(settings), encoding="utf-8")
    return changed


def encoder_of(checkpoint: Path, copy: CopiedStore, selected: Selected) -> EncoderSpec:
    """Return the encoder of a changed checkpoint with the limits on pixels that the manifest names."""
    folder = find_folder(str(checkpoint), lambda _: None)
    with PixelIndex(copy.home) as index:
        spec = encoder_spec(folder, read_config(folder.path), index)
    limits = selected.manifest.encoder.preprocessing
    preprocessing = replace(spec.preprocessing, min_pixels=limits.min_pixels, max_pixels=limits.max_pixels)
    return replace(spec, preprocessing=preprocessing)


def _there(found: Found | None, group: Group) -> Found:
    if found is None:
        raise CannotCheckError(f"The entry of frame {group[0].index} is missing in the copy for controls.")
    return found


def _links(folder: Path, to: Path, but: set[str]) -> Path:
    to.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file() and file.name not in but:
            (to / file.name).symlink_to(file.resolve())
    return to


def _tensor(file: Path) -> tuple[str, int, int] | None:
    """Return the stored type and the place, in bytes of the file, of the vision weight that is changed."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    for name, tensor in header.items():
        if name.endswith(_CHANGED_WEIGHT) and tensor["dtype"] in _SAFETENSORS_TYPES:
            start, stop = tensor["data_offsets"]
            return _SAFETENSORS_TYPES[tensor["dtype"]], 8 + length + start, 8 + length + stop
    return None


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # no hard links here
        shutil.copy2(source, target)


class NotApplicableError(Exception):
    """The recording or the checkpoint leaves no room for a fault; the text says why."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: its name, how it is put into a copy (returns where), and the level that must object.

    ``exact`` marks what only a comparison bit for bit can see.
    """

    name: str
    level: Level
    put: Callable[[CopiedStore, random.Random], str]
    exact: bool = False


def _zero_deepstack(copy: CopiedStore, rng: random.Random) -> str:
    group, features = _with_deepstack(copy, rng, 1)
    array = features.array.copy()
    array[1:] = 0
    copy.put(group, replace(features, array=array))
    return f"in frame {group[0].index}"


def _swap_layers(copy: CopiedStore, rng: random.Random) -> str:
    group, features = _with_deepstack(copy, rng, 2)
    order = list(range(len(features.array)))
    order[-2:] = reversed(order[-2:])
    copy.put(group, replace(features, array=np.ascontiguousarray(features.array[order])))
    return f"the last two, in frame {group[0].index}"


def _swap_frames(copy: CopiedStore, rng: random.Random) -> str:
    (one, mine), (other, theirs) = _two_alike(copy, rng)
    copy.put(one, theirs)
    copy.put(other, mine)
    return f"of frames {one[0].index} and {other[0].index}"


def _exchange_rows(copy: CopiedStore, rng: random.Random) -> str:
    (one, mine), (other, theirs) = _two_alike(copy, rng)
    left, right = mine.array.copy(), theirs.array.copy()
    left[:, ::2], right[:, ::2] = theirs.array[:, ::2], mine.array[:, ::2]
    copy.put(one, replace(mine, array=left))
    copy.put(other, replace(theirs, array=right))
    return f"every second token row of frames {one[0].index} and {other[0].index}"


def _shift_rows(copy: CopiedStore, rng: random.Random) -> str:
    group = rng.choice(copy.groups)
    features = copy.features(group)
    array = np.ascontiguousarray(np.roll(features.array, 1, axis=1))
    if array.tobytes() == features.array.tobytes():
        raise NotApplicableError("all token rows are alike")
    copy.put(group, replace(features, array=array))
    return f"in frame {group[0].index}"


def _lowest_bit(copy: CopiedStore, rng: random.Random) -> str:
    group = rng.choice(copy.groups)
    features = copy.features(group)
    array = features.array.copy()
    raw = array.reshape(-1).view(np.uint8)
    at = rng.randrange(array.size) * array.itemsize  # the first byte of a value holds its lowest bits
    raw[at] ^= 1
    copy.put(group, replace(features, array=array))
    return f"of one of {array.size:,} values of frame {group[0].index}"


def _flip_in(name: str) -> Callable[[CopiedStore, random.Random], str]:
    def flip(copy: CopiedStore, rng: random.Random) -> str:
        group = rng.choice(copy.groups)
        path = copy.entry_folder(group[0].key) / name
        raw = bytearray(path.read_bytes())
        position = rng.randrange(8 * len(raw))
        raw[position // 8] ^= 1 << position % 8
        _replace(path, bytes(raw))
        return f"bit {position:,} of {name} of frame {group[0].index}"

    return flip


def _wrong_key(copy: CopiedStore, rng: random.Random) -> str:
    one, other = _two_groups(copy, rng)
    frames = tuple(
        replace(frame, key=other[0].key) if frame.index == one[0].index else frame
        for frame in copy.manifest.frames
    )
    copy.put_manifest(replace(copy.manifest, frames=frames))
    return f"frame {one[0].index} names the key of frame {other[0].index}"


def _wrong_picture(copy: CopiedStore, rng: random.Random) -> str:
    one, other = _two_groups(copy, rng)
    place, changed = other[0], {frame.index for frame in one}
    frames = tuple(
        replace(
            place,
            index=frame.index,
            timestamp_s=frame.timestamp_s,
            source=frame.source,
            neighbour=frame.neighbour,
        )
        if frame.index in changed
        else frame
        for frame in copy.manifest.frames
    )
    copy.put_manifest(replace(copy.manifest, frames=frames))
    return f"frame {one[0].index} names picture and key of frame {place.index}"


FAULTS = (
    Fault("DeepStack zeroed", Level.embeddings, _zero_deepstack),
    Fault("DeepStack layers swapped", Level.embeddings, _swap_layers),
    Fault("two frames' entries swapped", Level.embeddings, _swap_frames),
    Fault("rows of one batch exchanged", Level.embeddings, _exchange_rows),
    Fault("token rows shifted by one", Level.embeddings, _shift_rows),
    Fault("lowest bit of one value, digests fitting", Level.embeddings, _lowest_bit, exact=True),
    Fault("one bit flipped in a payload", Level.bytes, _flip_in(CHUNK_NAME)),
    Fault("one bit flipped in metadata", Level.bytes, _flip_in(METADATA_NAME)),
    Fault("manifest names the wrong key", Level.bytes, _wrong_key),
    Fault("manifest names another frame's picture and key", Level.embeddings, _wrong_picture),
)


def _with_deepstack(copy: CopiedStore, rng: random.Random, num_layers: int) -> tuple[Group, Features]:
    group = rng.choice(copy.groups)
    features = copy.features(group)
    deepstack = features.deepstack
    if len(deepstack) < num_layers:
        raise NotApplicableError(f"the checkpoint has {len(deepstack)} DeepStack layers")
    if num_layers > 1 and deepstack[-1].tobytes() == deepstack[-2].tobytes():
        raise NotApplicableError("the last two DeepStack layers are alike")
    if num_layers == 1 and not deepstack.view(np.uint8).any():
        raise NotApplicableError("DeepStack is zero as it is")
    return group, features


def _two_groups(copy: CopiedStore, rng: random.Random) -> tuple[Group, Group]:
    if len(copy.groups) < 2:
        raise NotApplicableError("there is one entry only")
    one, other = rng.sample(copy.groups, 2)
    return one, other


def _two_alike(
    copy: CopiedStore, rng: random.Random
) -> tuple[tuple[Group, Features], tuple[Group, Features]]:
    """Return two entries of one size: what is exchanged between them fits the manifest."""
    pairs = [
        (one, other)
        for number, one in enumerate(copy.groups)
        for other in copy.groups[number + 1 :]
        if one[0].grid_thw == other[0].grid_thw
    ]
    rng.shuffle(pairs)
    for one, other in pairs:
        mine, theirs = copy.features(one), copy.features(other)
        if mine.array.tobytes() != theirs.array.tobytes():
            return (one, mine), (other, theirs)
    raise NotApplicableError("no two entries of one size are in the sample")


def _replace(path: Path, content: bytes) -> None:
    """Give a file new content without touching the file that other copies share."""
    aside = path.with_name(path.name + ".new")
    aside.write_bytes(content)
    os.replace(aside, path)  # noqa: PTH105


_MOST_ENTRIES = 4
_REFUSED = "encoder id"
_NEEDS_LIVE = "needs live encoding: --level embeddings or outputs"


@dataclass(frozen=True, slots=True)
class CommandEnded:
    """How a run of the public command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def run_verify_cache(arguments: Sequence[str], home: Home) -> CommandEnded:
    """Run ``verify-cache`` over another home, in this process, as it is run from the command line."""
    from seeonce.commands.main import run, verify_app

    out, err = io.StringIO(), io.StringIO()
    before = os.environ.get("SEEONCE_HOME")
    os.environ["SEEONCE_HOME"] = str(home.path)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = run(verify_app, list(arguments), error_code=2)
    finally:
        os.environ.pop("SEEONCE_HOME")
        os.environ.update({} if before is None else {"SEEONCE_HOME": before})
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    return CommandEnded(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True, slots=True)
class Controls:
    """What controls came to; ``twin_problem`` says how the unchanged copy did not pass."""

    results: tuple[ControlResult, ...]
    twin_problem: str | None


def run_controls(
    store: Store,
    selected: Selected,
    sample: list[Group],
    level: Level,
    more: Sequence[str],
    seed: int,
    listener: Listener,
) -> Controls:
    """Put each fault into a copy of a few entries of ``sample`` and run ``verify-cache`` over it.

    ``more`` are arguments that change what counts as equal. All copies are removed.
    """
    with _ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="seeonce-controls-") as name:
        place = Path(name)
        pristine = copy_store(store, selected.manifest, _few_of(sample), place / "twin")
        bench = _Bench(selected, pristine, level, tuple(more), place)
        listener.begin(len(FAULTS) + len(_CHANGES) + 1, "controls", "control")
        problem = bench.twin_problem()
        listener.advance()
        results = []
        if problem is None:
            for number, fault in enumerate(FAULTS):
                results.append(bench.try_fault(fault, random.Random(f"{seed} {number}")))  # noqa: S311
                listener.advance()
            for title, change in _CHANGES:
                results.append(bench.try_checkpoint(title, change))
                listener.advance()
        return Controls(tuple(results), problem)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Take SIGTERM as an interruption: by default the process would end and leave the copies behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _few_of(sample: list[Group]) -> list[Group]:
    """Return a few entries, two of one size among them if there are any."""
    by_size: dict[tuple[int, int, int], list[Group]] = {}
    for group in sample:
        by_size.setdefault(group[0].grid_thw, []).append(group)
    first = max(by_size.values(), key=len)[:2]
    rest = [group for group in sample if group not in first]
    return sorted([*first, *rest][:_MOST_ENTRIES], key=lambda group: group[0].index)


@dataclass(frozen=True, slots=True)
class _Bench:
    """The copies and the command that controls share."""

    selected: Selected
    pristine: CopiedStore
    level: Level
    more: tuple[str, ...]
    place: Path

    def twin_problem(self) -> str | None:
        ended = self._run(self.pristine, self.selected.folder.path, self.level)
        if ended.code == 0:
            return None
        return f"the unchanged copy does not pass (exit code {ended.code}): {_why(ended)}"

    def try_fault(self, fault: Fault, rng: random.Random) -> ControlResult:
        """Put one fault into a fresh copy and see who objects."""
        if fault.level is not Level.bytes and self.level is Level.bytes:
            return _not_applied(fault.name, _NEEDS_LIVE)
        if fault.exact and not self._bit_for_bit():
            return _not_applied(fault.name, "a tolerance holds for these entries, and one bit is within it")
        with tempfile.TemporaryDirectory(dir=self.place) as name:
            copy = copy_again(self.pristine, Path(name) / "home")
            try:
                where = fault.put(copy, rng)
            except (NotApplicableError, CannotCheckError) as error:
                return _not_applied(fault.name, str(error))
            level = Level.bytes if fault.level is Level.bytes else self.level
            objected = _objections(self._run(copy, self.selected.folder.path, level))
        caught = fault.level.value in objected and (fault.level is Level.bytes or "bytes" not in objected)
        words = f"{where}; objected: {', '.join(objected) or 'nobody'}"
        return ControlResult(fault.name, True, caught, objected, words)

    def try_checkpoint(self, title: str, change: Callable[[CheckpointFolder, Path], Path]) -> ControlResult:
        """Change the checkpoint under its name; then claim that the old features are the new encoder's."""
        if self.level is Level.bytes:
            return _not_applied(title, _NEEDS_LIVE)
        with tempfile.TemporaryDirectory(dir=self.place) as name:
            try:
                checkpoint = change(self.selected.folder, Path(name) / "model")
            except CannotCheckError as error:
                return _not_applied(title, str(error))
            copy = copy_again(self.pristine, Path(name) / "home")
            refused = self._run(copy, checkpoint, self.level)
            copy.give_to(encoder_of(checkpoint, copy, self.selected))
            objected = _objections(self._run(copy, checkpoint, self.level))
        if refused.code not in (0, 1) and "not by the vision tower" in refused.err:
            objected = (_REFUSED, *objected)
        caught = _REFUSED in objected and "embeddings" in objected and "bytes" not in objected
        words = f"as it is and with forged keys; objected: {', '.join(objected) or 'nobody'}"
        return ControlResult(title, True, caught, objected, words)

    def _bit_for_bit(self) -> bool:
        here = backend.provenance()
        same = all(
            same_provenance(self.pristine.info(group).provenance, here) for group in self.pristine.groups
        )
        return same and "--tolerance" not in self.more

    def _run(self, copy: CopiedStore, checkpoint: Path, level: Level) -> CommandEnded:
        arguments = [self.selected.manifest.recording.id, "--level", level.value, "--json"]
        if level is not Level.bytes:
            arguments += ["--model", str(checkpoint), "--sample", "all", *self.more]
        return run_verify_cache(arguments, copy.home)


def _objections(ended: CommandEnded) -> tuple[str, ...]:
    """Return the names of the checks that found something to differ."""
    if ended.code != 1:
        return ()
    return tuple(check["name"] for check in json.loads(ended.out)["checks"] if not check["equal"])


def _why(ended: CommandEnded) -> str:
    if ended.code == 1:
        problems = [problem for check in json.loads(ended.out)["checks"] for problem in check["problems"]]
        return problems[0] if problems else "no reason given"
    lines = [line for line in ended.err.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _not_applied(name: str, why: str) -> ControlResult:
    return ControlResult(name, applied=False, caught=False, caught_by=(), words=why)


_CHANGES = (
    ("weights changed under the same name", changed_weights),
    ("other preprocessing under the same name", changed_preprocessing),
)
