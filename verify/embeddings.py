"""The embeddings level of verify-cache: stored features against what the encoder makes of each frame now."""

from cache.entry import Features
from cache.errors import CannotCheckError, StalePictureError
from cache.manifest import FrameEntry, Manifest
from cache.store import Store
from checkpoint import backend
from verify.compare import feature_differences, feature_problem
from verify.live_side import LiveFeatures
from verify.report import Check, Listener


class EmbeddingCheck:
    """Compares a sample; ``readable`` are then the frames, one an entry, whose answers can be compared."""

    def __init__(self, store: Store, live: LiveFeatures) -> None:
        """Compare entries of ``store`` with ``live``."""
        self._store, self._live = store, live
        self._here = backend.provenance()
        self.readable: list[FrameEntry] = []
        self._problems: list[str] = []
        self._unchecked: list[str] = []

    def run(self, manifest: Manifest, sample: list[list[FrameEntry]], listener: Listener) -> Check:
        """Encode every entry of the sample live, and look at the picture of every frame that names it."""
        listener.begin(len(sample), "embeddings", "entry")
        num_exact = 0
        for group in sample:
            stored = None if self._store.check(group[0].key) else self._store.read(group[0].key)
            if stored is None:
                self._problems.append(f"frame {group[0].index}: its entry is missing or damaged")
            else:
                num_exact += self._compare(group, stored)
            listener.advance()
        num_total = len({frame.key for frame in manifest.frames})
        num_frames = sum(len(group) for group in sample)
        words = (
            f"{len(sample)} of {num_total} entries encoded live from {num_frames} frames, "
            f"{num_exact} equal bit for bit"
        )
        problems, unchecked = tuple(self._problems), tuple(self._unchecked)
        return Check("embeddings", not problems, words, len(sample), num_total, problems, unchecked)

    def same_provenance(self, frame: FrameEntry) -> bool:
        """Tell whether an entry was computed by what computes here: versions, device and chip."""
        info = self._store.peek(frame.key)
        here = self._here
        return info is not None and (
            (info.provenance.mlx, info.provenance.mlx_vlm, info.provenance.device, info.provenance.chip)
            == (here.mlx, here.mlx_vlm, here.device, here.chip)
        )

    def _compare(self, group: list[FrameEntry], stored: Features) -> bool:
        """Compare one entry with each frame that names it; tell whether every bit agreed."""
        exact, sound = True, True
        for frame in group:
            try:
                live = self._live.features(frame)
            except StalePictureError as error:
                self._problems.append(f"frame {frame.index}: {error}")
                exact = sound = False
                continue
            except CannotCheckError as error:
                self._unchecked.append(str(error))
                exact = sound = False
                continue
            problem = feature_problem(stored, live, same_provenance=self.same_provenance(frame))
            if problem is not None:
                self._problems.append(f"frame {frame.index}: {problem}")
            exact = exact and feature_differences(stored, live) == []
        if sound:
            self.readable.append(group[0])
        return exact
