"""Sizes as people read them."""


def megabytes(num_bytes: int) -> str:
    """Return a number of bytes in words: "41.8 MB", "7.6 GB", "12.3 kB"."""
    for size, unit in ((1e9, "GB"), (1e6, "MB")):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes / 1e3:,.1f} kB" if num_bytes else "0 kB"
