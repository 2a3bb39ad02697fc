"""An encoder that nobody has, for stores that are filled without a model: by measurements and by tests."""

from cache.key import EncoderSpec, Preprocessing, WeightsDigest

_PREPROCESSING = Preprocessing(
    processor_class="Qwen3VLProcessor",
    min_pixels=65_536,
    max_pixels=2_073_600,
    patch_size=16,
    merge_size=2,
    temporal_patch_size=2,
    do_rescale=True,
    rescale_factor=1 / 255,
    do_normalize=True,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    resample="bicubic",
)
IMAGINED_ENCODER = EncoderSpec(
    architecture="qwen3_vl",
    depth=4,
    hidden_size=32,
    num_heads=2,
    out_hidden_size=8,
    num_position_embeddings=2304,
    deepstack_visual_indexes=(1, 2, 3),
    weights=WeightsDigest(bytes(range(32))),
    quantization="none",
    preprocessing=_PREPROCESSING,
    compute_dtype="bfloat16",
    epoch=1,
)
