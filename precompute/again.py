"""Encoding frames of a manifest again, for ``seeonce store repair``: the same pictures, the same encoder.

Owns: what makes that possible or not. Does not own: which frames (``cache.repairing``).
"""

from collections.abc import Iterator

from cache.errors import CannotCheckError, CheckpointError, InputError, SeeonceError, StalePictureError
from cache.manifest import FrameEntry
from cache.pixel_index import PixelIndex
from cache.repairing import Missing
from checkpoint import backend
from checkpoint.config import read_config
from checkpoint.folder import default_model, find_folder
from checkpoint.identity import encoder_spec
from precompute.live import LiveFrames


def encode_again(missing: Missing) -> Iterator[tuple[FrameEntry, str | None]]:
    """Yield each frame when its entry is written, or with the reason why it cannot be.

    Raises:
        LimitReachedError: the store may not be larger; what is written stays.
        StoreError: the disk refuses.
    """
    try:
        live = _live(missing)
    except SeeonceError as error:
        yield from ((frame, str(error)) for frame in missing.frames)
        return
    for frame in missing.frames:
        yield frame, _encoded(missing, frame, live)


def _live(missing: Missing) -> LiveFrames:
    manifest = missing.manifest
    name = missing.model or default_model(manifest.recording.id)
    folder = find_folder(name, missing.say)
    config = read_config(folder.path)
    with PixelIndex(missing.store.home) as index:
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


def _encoded(missing: Missing, frame: FrameEntry, live: LiveFrames) -> str | None:
    """Encode and commit one frame; return why it cannot be, or ``None``."""
    try:
        features = live.encode(live.image(frame))
    except CannotCheckError:
        return f"{frame.source} is gone or cannot be read"
    except StalePictureError:
        return f"{frame.source} is another picture now: run seeonce encode again"
    except InputError as error:
        return str(error)
    missing.limit.take(features.nbytes)
    missing.store.write(frame.pixels, missing.manifest.encoder, features, backend.provenance())
    return None
