"""What an encoder consists of: weights, architecture, preprocessing, compute type, epoch.

Owns: the fields that decide what an encoder makes of a picture, their digest, and their JSON. Does
not own: how any of them is found out from a checkpoint (``checkpoint/``).
"""

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Self

from cache.canonical_json import JsonObject, JsonValue
from cache.digest import EncoderId, Field, FieldHasher, WeightsDigest
from cache.errors import StoreError

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")

_ENCODER = "seeonce 2026-11 encoder id, format 1"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How pixels become patches, resolved: no default is left to a library.

    ``min_pixels`` and ``max_pixels`` bound the resized picture; sizes are in pixels
    (``patch_size``), patches (``merge_size``) and frames (``temporal_patch_size``).
    """

    processor_class: str
    min_pixels: int
    max_pixels: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    resample: str

    def __post_init__(self) -> None:
        # 0 and 0.0 mean the same to a processor: they must name the same encoder.
        object.__setattr__(self, "rescale_factor", float(self.rescale_factor))
        object.__setattr__(self, "image_mean", tuple(float(value) for value in self.image_mean))
        object.__setattr__(self, "image_std", tuple(float(value) for value in self.image_std))
        sizes = (self.min_pixels, self.max_pixels, self.patch_size, self.merge_size, self.temporal_patch_size)
        if min(sizes) < 1 or self.min_pixels > self.max_pixels:
            raise ValueError(f"preprocessing sizes must be positive and min <= max pixels, got {sizes}")

    def to_json(self) -> dict[str, JsonValue]:
        """Return plain JSON types."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            StoreError: for anything else.
        """
        document = JsonObject(value, "preprocessing").only(_PREPROCESSING_FIELDS)
        try:
            return cls(
                processor_class=document.text("processor_class"),
                min_pixels=document.integer("min_pixels"),
                max_pixels=document.integer("max_pixels"),
                patch_size=document.integer("patch_size"),
                merge_size=document.integer("merge_size"),
                temporal_patch_size=document.integer("temporal_patch_size"),
                do_rescale=document.flag("do_rescale"),
                rescale_factor=document.number("rescale_factor"),
                do_normalize=document.flag("do_normalize"),
                image_mean=document.numbers("image_mean"),
                image_std=document.numbers("image_std"),
                resample=document.text("resample"),
            )
        except (ValueError, OverflowError) as error:
            raise StoreError(f"preprocessing: {error}") from None


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Everything that decides what an encoder makes of a picture.

    ``architecture`` is in it because the dense and the MoE vision tower compute different GELUs
    from the same weights, and ``num_heads`` because no weight shows it. ``quantization`` is
    canonical JSON or "none". ``strict`` is provenance, in the key only under ``--strict``.
    """

    architecture: str
    depth: int
    hidden_size: int
    num_heads: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]
    weights: WeightsDigest
    quantization: str
    preprocessing: Preprocessing
    compute_dtype: str
    epoch: int
    strict: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "deepstack_visual_indexes", tuple(map(int, self.deepstack_visual_indexes)))
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(f"compute_dtype must be one of {COMPUTE_DTYPES}, got {self.compute_dtype!r}")
        if min(self.depth, self.hidden_size, self.num_heads, self.out_hidden_size) < 1:
            raise ValueError("depth, hidden_size, num_heads and out_hidden_size must be positive")

    @property
    def num_layers(self) -> int:
        """Arrays per entry: the merged tokens, then one per DeepStack layer."""
        return 1 + len(self.deepstack_visual_indexes)

    @property
    def encoder_id(self) -> EncoderId:
        """The digest of every field, in the order of the class."""
        return _encoder_id(self)

    def to_json(self) -> dict[str, JsonValue]:
        """Return plain JSON types."""
        document: dict[str, JsonValue] = {
            field.name: _plain(getattr(self, field.name))
            for field in fields(self)
            if field.name not in ("weights", "preprocessing")
        }
        return {**document, "weights": self.weights.hex, "preprocessing": self.preprocessing.to_json()}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            StoreError: for anything else.
        """
        document = JsonObject(value, "encoder").only(_ENCODER_FIELDS)
        try:
            spec = cls(
                architecture=document.text("architecture"),
                depth=document.integer("depth"),
                hidden_size=document.integer("hidden_size"),
                num_heads=document.integer("num_heads"),
                out_hidden_size=document.integer("out_hidden_size"),
                num_position_embeddings=document.integer("num_position_embeddings"),
                deepstack_visual_indexes=document.integers("deepstack_visual_indexes"),
                weights=WeightsDigest.from_hex(document.text("weights")),
                quantization=document.text("quantization"),
                preprocessing=Preprocessing.from_json(document.raw("preprocessing")),
                compute_dtype=document.text("compute_dtype"),
                epoch=document.integer("epoch"),
                strict=document.text("strict"),
            )
            _encoder_id(spec)  # a text that is no Unicode cannot be hashed
        except ValueError as error:
            raise StoreError(f"encoder: {error}") from None
        return spec


_PREPROCESSING_FIELDS = frozenset(field.name for field in fields(Preprocessing))
_ENCODER_FIELDS = frozenset(field.name for field in fields(EncoderSpec))


@lru_cache(maxsize=64)
def _encoder_id(spec: EncoderSpec) -> EncoderId:
    hasher = FieldHasher(_ENCODER)
    hasher.add_all(_spec_fields(spec))
    return EncoderId(hasher.digest())


def _spec_fields(spec: EncoderSpec) -> tuple[Field, ...]:
    preprocessing = spec.preprocessing
    return (
        spec.architecture,
        spec.depth,
        spec.hidden_size,
        spec.num_heads,
        spec.out_hidden_size,
        spec.num_position_embeddings,
        spec.deepstack_visual_indexes,
        spec.weights.raw,
        spec.quantization,
        (
            preprocessing.processor_class,
            preprocessing.min_pixels,
            preprocessing.max_pixels,
            preprocessing.patch_size,
            preprocessing.merge_size,
            preprocessing.temporal_patch_size,
            preprocessing.do_rescale,
            preprocessing.rescale_factor,
            preprocessing.do_normalize,
            preprocessing.image_mean,
            preprocessing.image_std,
            preprocessing.resample,
        ),
        spec.compute_dtype,
        spec.epoch,
        spec.strict,
    )


def _plain(value: object) -> JsonValue:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"cannot store {type(value).__name__} as JSON")
