"""Live encoding of frames that a manifest names: pass one's side of the verifier."""

from collections.abc import Iterator

from PIL import Image

from cache.base.errors import CannotCheckError, CheckpointError, InputError, SeeonceError, StalePictureError
from cache.check import Missing
from cache.entry import Features
from cache.key import pixel_digest
from cache.manifest import FrameEntry, Manifest
from cache.pixel_index import PixelIndex
from checkpoint import backend
from checkpoint.config import CheckpointConfig, read_config
from checkpoint.folder import CheckpointFolder, default_model, find_folder
from checkpoint.identity import encoder_spec
from precompute.encoder import VisionEncoder
from precompute.pass_one import reopen
from precompute.patches import cut_into_patches
from sources.pixels import pixels_array
from sources.recording import Frame


class LiveFrames:
    """Reads a manifest's frames again, from where they were, and encodes them with its encoder."""

    def __init__(self, folder: CheckpointFolder, config: CheckpointConfig, manifest: Manifest) -> None:
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
        self._folder, self._config, self._spec = folder, config, manifest.encoder
        self._encoder: VisionEncoder | None = None

    def misplaced(self, frame: FrameEntry) -> str | None:
        """Say how a frame's index or time is not the one that the manifest names, or ``None``."""
        found = self._frames.get(frame.source)
        if found is None or (found.index, found.timestamp_s) == (frame.index, frame.timestamp_s):
            return None
        return (
            f"the manifest has {frame.source} at {frame.timestamp_s:g} s, in the recording it is frame "
            f"{found.index} at {found.timestamp_s:g} s: run seeonce encode again"
        )

    def image(self, frame: FrameEntry) -> Image.Image:
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

    def encode(self, image: Image.Image) -> Features:
        """Encode a picture now, with pass one's own encoder."""
        if self._encoder is None:
            self._encoder = VisionEncoder(self._folder, self._config, self._spec)
        return self._encoder.encode(cut_into_patches(image, self._spec.preprocessing))


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
