"""Loads an encoder once, however many recordings use it. Importing this does not import the encoder."""

from typing import TYPE_CHECKING

from cache.key import EncoderId, EncoderSpec
from checkpoint.config import Checkpoint

if TYPE_CHECKING:
    from precompute.encoder import VisionEncoder

Loaded = dict[EncoderId, "VisionEncoder"]
"""The encoder that is loaded, if one is."""


def load_encoder(checkpoint: Checkpoint, spec: EncoderSpec, loaded: Loaded) -> "VisionEncoder":
    """Return the encoder from ``loaded``, or load it and put it there in the place of another."""
    from precompute.encoder import VisionEncoder

    if spec.encoder_id not in loaded:
        loaded.clear()  # never two at once
        loaded[spec.encoder_id] = VisionEncoder(checkpoint, spec)
    return loaded[spec.encoder_id]
