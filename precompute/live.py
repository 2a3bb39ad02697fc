"""Live encoding of frames that a manifest names: pass one's side of the verifier and of store repair."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from cache.base.errors import CannotCheckError, CheckpointError, InputError, SeeonceError, StalePictureError
from cache.entry import Features
from cache.key import pixel_digest
from cache.manifest import FrameEntry, Manifest
from cache.stats import StoreLimit
from cache.store import Store
from checkpoint import backend
from checkpoint.config import Checkpoint
from checkpoint.identity import find_encoder, model_of
from precompute.loaded import Loaded, load_encoder
from precompute.options import reopen
from precompute.patches import cut_into_patches
from sources.pixels import pixels_array
from sources.recording import Frame

if TYPE_CHECKING:
    from PIL import Image


class LiveFrames:
    """Reads a manifest's frames again, from where they were, and encodes them with its encoder."""

    def __init__(self, checkpoint: Checkpoint, manifest: Manifest) -> None:
        """Find the frames; the encoder is loaded when it is first needed.

        Raises:
            CannotCheckError: the recording is gone.
        """
        info = manifest.recording
        try:
            recording = reopen(manifest)
        except InputError as error:
            raise CannotCheckError(
                f"The frames of {info.id} are gone ({error}); without them use "
                f"verify-cache {info.id} --level bytes."
            ) from error
        # A frame that uses a neighbour's entry shows, as far as the store goes, the neighbour's picture.
        self._shown = {frame.index: frame.source for frame in manifest.frames if frame.neighbour is None}
        self._frames: dict[str, Frame] = {frame.source: frame for frame in recording.frames()}
        self._checkpoint, self._spec = checkpoint, manifest.encoder
        self._loaded: Loaded = {}

    def misplaced(self, frame: FrameEntry) -> str | None:
        """Say how a frame's index or time is not the one that the manifest names, or ``None``."""
        found = self._frames.get(frame.source)
        if found is None or (found.index, found.timestamp_s) == (frame.index, frame.timestamp_s):
            return None
        return (
            f"the manifest has {frame.source} at {frame.timestamp_s:g} s, in the recording it is frame "
            f"{found.index} at {found.timestamp_s:g} s: run seeonce encode again"
        )

    def image(self, frame: FrameEntry) -> "Image.Image":
        """Return the RGB picture of a frame, or of the neighbour whose entry it uses.

        Raises:
            CannotCheckError: it is gone or cannot be read.
            StalePictureError: it is no longer the picture that was encoded.
        """
        source = frame.source if frame.neighbour is None else self._shown.get(frame.neighbour, "")
        found = self._frames.get(source)
        if found is None:
            raise CannotCheckError(f"Frame {frame.index} is gone ({source}); use --level bytes.")
        try:
            image = found.read()
        except InputError as error:
            raise CannotCheckError(f"Frame {frame.index} cannot be read ({error}).") from error
        if pixel_digest(pixels_array(image)) != frame.pixels:
            raise StalePictureError(
                f"{source} is not the picture whose digest the manifest names: run seeonce encode again"
            )
        return image

    def encode(self, image: "Image.Image") -> Features:
        """Encode a picture now, with pass one's own encoder."""
        encoder = load_encoder(self._checkpoint, self._spec, self._loaded)
        return encoder.encode(cut_into_patches(image, self._spec.preprocessing))


def encode_again(
    store: Store,
    manifest: Manifest,
    frames: list[FrameEntry],
    limit: StoreLimit,
    model: str | None,
    say: Callable[[str], None],
) -> Iterator[tuple[FrameEntry, str | None]]:
    """Yield each frame when its entry is written, or with the reason why it cannot be.

    Raises:
        LimitReachedError: the store may not be larger; what is written stays.
        StoreError: the disk refuses.
    """
    try:
        live = _live(store, manifest, model, say)
    except SeeonceError as error:
        yield from ((frame, str(error)) for frame in frames)
        return
    for frame in frames:
        try:
            features = live.encode(live.image(frame))
        except CannotCheckError:
            yield frame, f"{frame.source} is gone or cannot be read"
        except StalePictureError:
            yield frame, f"{frame.source} is another picture now: run seeonce encode again"
        except InputError as error:
            yield frame, str(error)
        else:
            limit.take(features.nbytes)
            store.write(frame.pixels, manifest.encoder, features, backend.provenance())
            yield frame, None


def _live(store: Store, manifest: Manifest, model: str | None, say: Callable[[str], None]) -> LiveFrames:
    name = model or model_of(store.home, manifest.recording.id, manifest.encoder.encoder_id)
    checkpoint, spec = find_encoder(store.home, name, say, manifest.encoder.preprocessing.max_pixels)
    if spec != manifest.encoder:
        raise CheckpointError(
            f"it was encoded under {manifest.encoder.encoder_id.hex[:12]}, {name} would give "
            f"{spec.encoder_id.hex[:12]}: give the same checkpoint with --model"
        )
    try:
        return LiveFrames(checkpoint, manifest)
    except CannotCheckError:
        raise CannotCheckError(f"{manifest.recording.path} is gone or cannot be read") from None
