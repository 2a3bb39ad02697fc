"""A Qwen3-VL checkpoint: where it is, what it is, and the identity of its encoder. Used by both passes."""
