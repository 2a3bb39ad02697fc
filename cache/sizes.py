"""Sizes as people read them."""


def megabytes(num_bytes: int) -> str:
    """Return a number of bytes in words: "41.8 MB", "7.6 GB"."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
