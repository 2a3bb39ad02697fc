"""What computed the entries against what computes here. Owns which differences allow another rounding."""

from collections import Counter
from collections.abc import Iterable

from cache.entry import EntryInfo, Provenance
from seeonce.verifier.report import ProvenanceDifference

_DECIDES = ("mlx", "mlx_vlm", "device", "chip")
_SHOWN = (*_DECIDES, "seeonce")


def same_provenance(stored: Provenance, here: Provenance) -> bool:
    """Tell whether an entry was computed by the versions, device and chip that compute here.

    An entry that does not say what computed it was not.
    """
    return all(
        getattr(stored, field) and getattr(stored, field) == getattr(here, field) for field in _DECIDES
    )


def provenance_differences(infos: Iterable[EntryInfo], here: Provenance) -> tuple[ProvenanceDifference, ...]:
    """Count the entries whose mlx, mlx-vlm, device, chip or seeonce is another, or is not recorded."""
    counts: Counter[tuple[str, str]] = Counter()
    for info in infos:
        for field in _SHOWN:
            stored = getattr(info.provenance, field)
            if stored != getattr(here, field) or not stored:
                counts[field, stored] += 1
    return tuple(
        ProvenanceDifference(field, stored, getattr(here, field), count)
        for (field, stored), count in sorted(counts.items())
    )
