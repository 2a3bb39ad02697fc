"""Encoding frames of a manifest again, for ``seeonce store repair``: the same pictures, the same encoder.

Owns: what makes that possible or not. Does not own: which frames (``cache.repairing``).
"""

from collections.abc import Callable, Iterator, Sequence

from cache.errors import CannotCheckError, CheckpointError, InputError, SeeonceError, StalePictureError
from cache.manifest import FrameEntry, Manifest
from cache.pixel_index import PixelIndex
from cache.store import Store
from checkpoint import backend
from checkpoint.config import read_config
from checkpoint.folder import default_model, find_folder
from checkpoint.identity import encoder_spec
from precompute.live import LiveFrames


def encode_again(
    store: Store,
    manifest: Manifest,
    frames: Sequence[FrameEntry],
    model: str | None,
    say: Callable[[str], None],
) -> Iterator[tuple[FrameEntry, str | None]]:
    """Yield each frame when its entry is written, or with the reason why it cannot be.

    Raises:
        StoreError: the disk refuses.
    """
    try:
        live = _live(store, manifest, model, say)
    except SeeonceError as error:
        yield from ((frame, str(error)) for frame in frames)
        return
    for frame in frames:
        yield frame, _encoded(store, manifest, frame, live)


def _live(store: Store, manifest: Manifest, model: str | None, say: Callable[[str], None]) -> LiveFrames:
    name = model or default_model(manifest.recording.id)
    folder = find_folder(name, say)
    config = read_config(folder.path)
    with PixelIndex(store.home) as index:
        spec = encoder_spec(folder, config, index, manifest.encoder.preprocessing.max_pixels)
    if spec != manifest.encoder:
        raise CheckpointError(
            f"it was encoded under {manifest.encoder.encoder_id.hex[:12]}, {name} would give "
            f"{spec.encoder_id.hex[:12]}: give the same checkpoint with --model"
        )
    try:
        return LiveFrames(folder, config, manifest)
    except CannotCheckError:
        raise CannotCheckError(f"{manifest.recording.path} is gone or cannot be read") from None


def _encoded(store: Store, manifest: Manifest, frame: FrameEntry, live: LiveFrames) -> str | None:
    """Encode and commit one frame; return why it cannot be, or ``None``."""
    try:
        features = live.encode(live.image(frame))
    except CannotCheckError:
        return f"{frame.source} is gone or cannot be read"
    except StalePictureError:
        return f"{frame.source} is another picture now: run seeonce encode again"
    except InputError as error:
        return str(error)
    store.write(frame.pixels, manifest.encoder, features, backend.provenance())
    return None
