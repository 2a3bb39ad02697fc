"""A checkpoint: where it is, of which family, and the identity of its encoder. Used by both passes."""
