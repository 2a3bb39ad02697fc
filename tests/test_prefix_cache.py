"""A later run starts from prefixes on disk: no image token is computed, and no answer changes by that."""

import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from asked_live import Asked, mixed_parts, variant
from store_samples import flip_bit
from test_prefix_sharing import SeenByDecoder

from cache import prefixes
from cache.base.home import Home
from cache.manifest import FrameEntry
from cache.prefixes import PrefixStore
from infer import prefix_cache
from infer.kv_cache import KVRow
from infer.limits import BatchLimits
from infer.prefixes import prefix_name
from infer.request import Request

LIMITS = BatchLimits(8, 4, 2048)


@pytest.fixture(scope="module")
def asked(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(plain, tmp_path_factory.mktemp("kept"), 5, num_sizes=4)


@pytest.mark.parametrize(
    "limits", [pytest.param(LIMITS, marks=pytest.mark.campaign), BatchLimits(3, 8, 33)], ids=str
)
def test_a_new_prompt_in_a_later_run_computes_no_image_token(
    asked: Asked, limits: BatchLimits, tmp_path: Path
) -> None:
    first = [asked.request(n, frame, "Which app is open?") for n, frame in enumerate(asked.frames)]
    later = [asked.request(n, frame, "And what is the user doing?") for n, frame in enumerate(asked.frames)]
    with asked.on_disk(tmp_path):
        ended = asked.run(first, limits)
        assert ended.stats.num_images == len(asked.frames)
        assert ended.tokens(first) == asked.want(first)
        with SeenByDecoder(asked) as seen:
            ended = asked.run(later, limits)
    assert (seen.num_image_positions, ended.stats.num_images) == (0, 0)
    assert ended.stats.num_images_read == len(asked.frames)
    assert ended.tokens(later) == asked.want(later)


FIRST, LATER = "Which app is open?", "And what is the user doing?"


def _asked_of_all(asked: Asked, text: str) -> list[Request]:
    return [asked.request(n, frame, text) for n, frame in enumerate(asked.frames)]


@pytest.fixture(scope="module")
def kept(asked: Asked, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a prefix of every frame."""
    home = tmp_path_factory.mktemp("kept-home")
    with asked.on_disk(home):
        asked.run(_asked_of_all(asked, FIRST), LIMITS)
    return home


@pytest.fixture
def home(kept: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may harm."""
    return Path(shutil.copytree(kept, tmp_path / "home"))


def _folder(asked: Asked, home: Path, number: int) -> Path:
    """Return where the prefix of a frame lies."""
    key = asked.frames[number].key.hex
    (found,) = [path.parent for path in home.rglob("prefix.json") if key in path.read_text()]
    return found


def _differing(asked: Asked, home: Path) -> list[int]:
    later = _asked_of_all(asked, LATER)
    with asked.on_disk(home):
        ended = asked.run(later, LIMITS)
    return [
        n
        for n, (got, want) in enumerate(zip(ended.tokens(later), asked.want(later), strict=True))
        if got != want
    ]


def test_a_flipped_byte_on_disk_costs_one_prefill_and_no_answer(asked: Asked, home: Path) -> None:
    chunk = _folder(asked, home, 3) / "c.0.0.0"
    flip_bit(chunk, 8 * 5000)
    later = _asked_of_all(asked, LATER)
    with asked.on_disk(home):
        ended = asked.run(later, LIMITS)
        assert (ended.stats.num_images, ended.stats.num_images_read) == (1, 4)
        assert ended.tokens(later) == asked.want(later)
        assert asked.run(later, LIMITS).stats.num_images == 0  # it was kept again


def test_a_byte_that_no_check_sees_is_a_wrong_answer(
    asked: Asked, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without its checks the cache gives whatever lies on disk."""
    assert _differing(asked, home) == []
    chunk = _folder(asked, home, 3) / "c.0.0.0"
    content = bytearray(chunk.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    chunk.write_bytes(content)
    monkeypatch.setattr(prefixes, "check_payload", lambda readinto, *rest: readinto(rest[2]))
    assert _differing(asked, home) == [3]


def test_a_prefix_of_another_frame_is_a_wrong_answer(
    asked: Asked, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: were the frames not part of its name, another frame's prefix would be taken."""
    assert asked.frames[0].grid_thw == asked.frames[4].grid_thw
    monkeypatch.setattr(prefix_cache, "prefix_name", lambda keys, prompt, by: prefix_name((), prompt, by))
    with asked.on_disk(home):
        asked.run([asked.request(0, asked.frames[0], FIRST)], LIMITS)
    other = [asked.request(0, asked.frames[4], LATER)]
    with asked.on_disk(home):
        ended = asked.run(other, LIMITS)
    assert ended.stats.num_images == 0
    assert ended.tokens(other) != asked.want(other)


def test_a_prefix_one_token_short_is_a_wrong_answer(
    asked: Asked, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: its last token is not there, and what follows goes on as if it were."""
    right: Any = prefix_cache.Layout.rows

    def short(self: Any, arrays: Any, num_tokens: int) -> tuple[Any, ...]:
        rows = [row.between(0, num_tokens - 1) for row in right(self, arrays, num_tokens)]
        width = [(0, 0), (0, 0), (0, 1), (0, 0)]
        return tuple(KVRow(mx.pad(row.keys, width), mx.pad(row.values, width)) for row in rows)

    monkeypatch.setattr(prefix_cache.Layout, "rows", short)
    assert _differing(asked, home) != []


def test_other_weights_versions_or_system_text_find_nothing(asked: Asked, home: Path) -> None:
    (request,) = _asked_of_all(asked, LATER)[:1]
    with asked.on_disk(home):
        ended = asked.run([replace(request, system="Be brief.")], LIMITS)
        assert ended.stats.num_images_read == 0
    asked.engine.keep_prefixes(PrefixStore(Home(home), 1 << 30), ("other weights",))
    assert asked.run([request], LIMITS).stats.num_images_read == 0
    asked.engine.prefix_cache = None


def test_several_frames_in_a_prompt_are_one_prefix_in_their_order(asked: Asked, tmp_path: Path) -> None:
    one, other = asked.frames[0], asked.frames[4]

    def pair(first: FrameEntry, second: FrameEntry, text: str) -> Request:
        return asked.request(0, "Frame 1: ", first, "\nFrame 2: ", second, text)

    with asked.on_disk(tmp_path):
        asked.run([pair(one, other, FIRST)], LIMITS)
        again, turned = pair(one, other, LATER), pair(other, one, LATER)
        ended = asked.run([again], LIMITS)
        assert (ended.stats.num_images, ended.stats.num_images_read) == (0, 2)
        assert ended.tokens([again]) == asked.want([again])
        ended = asked.run([turned], LIMITS)
        assert (ended.stats.num_images, ended.stats.num_images_read) == (2, 0)
        assert ended.tokens([turned]) == asked.want([turned])


def test_many_questions_share_what_was_read_once(asked: Asked, kept: Path) -> None:
    requests = asked.questions(4, list(asked.frames[:3]))
    with asked.on_disk(kept):
        ended = asked.run(requests, LIMITS)
    assert (ended.stats.num_images, ended.stats.num_images_read) == (0, 3)
    assert ended.tokens(requests) == asked.want(requests)


@pytest.mark.parametrize("num_sequences", [1.05, 2.5])
def test_a_tight_bound_of_memory_costs_time_and_no_answer(
    asked: Asked, kept: Path, num_sequences: float
) -> None:
    requests = asked.questions(2, list(asked.frames[:3]))
    bound = int(num_sequences * 256 * asked.engine.model.kv_token_bytes)
    with asked.on_disk(kept):
        ended = asked.run(requests, replace(LIMITS, kv_memory_bytes=bound))
    assert ended.stats.max_prefix_bytes <= bound
    assert ended.tokens(requests) == asked.want(requests)


def test_a_disk_that_refuses_is_said_once_and_costs_no_answer(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "prefixes").write_text("no folder")
    requests = _asked_of_all(asked, FIRST)
    with asked.on_disk(tmp_path):
        ended = asked.run(requests, LIMITS)
        assert ended.tokens(requests) == asked.want(requests)
        assert len(ended.stats.notes) == 1
        assert ended.stats.notes[0].startswith("No more prefixes are kept on disk: ")
        assert asked.run(requests[:1], LIMITS).stats.notes == []


def test_a_full_disk_is_said_once_and_costs_no_answer(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=10**12, free=10**6))
    requests = _asked_of_all(asked, FIRST)
    with asked.on_disk(tmp_path):
        ended = asked.run(requests, LIMITS)
    assert ended.tokens(requests) == asked.want(requests)
    assert ["nearly full" in note for note in ended.stats.notes] == [True]


def test_where_reading_takes_longer_than_prefill_it_says_so_and_prefills(
    asked: Asked, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = PrefixStore.read

    def slow(self: PrefixStore, *more: Any) -> Any:
        time.sleep(0.1)
        found = right(self, *more)
        return found and (replace(found[0], prefill_s=0.01), found[1])

    monkeypatch.setattr(PrefixStore, "read", slow)
    requests = _asked_of_all(asked, LATER)
    with asked.on_disk(kept):
        ended = asked.run(requests, BatchLimits(1, 1, 2048))
    assert 0 < ended.stats.num_images_read < ended.stats.num_images
    assert ["is not used" in note for note in ended.stats.notes] == [True]
    assert ended.tokens(requests) == asked.want(requests)


def test_without_sharing_nothing_is_read_or_kept(asked: Asked, tmp_path: Path) -> None:
    with asked.on_disk(tmp_path):
        asked.run(_asked_of_all(asked, FIRST), replace(LIMITS, share_prefixes=False))
    assert list(tmp_path.iterdir()) == []


def test_a_run_knows_what_a_cache_would_take_and_spare(asked: Asked, kept: Path) -> None:
    requests = asked.questions(1)
    stats = asked.run(requests, LIMITS).stats
    num_bytes = sum(path.stat().st_size for path in kept.rglob("c.0.0.0"))
    assert stats.prefix_bytes == num_bytes - 4 * len(asked.frames)
    assert stats.prefix_seconds > 0


@pytest.mark.parametrize(
    "family",
    [
        "qwen3_5",
        *(pytest.param(name, marks=pytest.mark.campaign) for name in ("moe", "text_4bit")),
    ],
)
def test_every_kind_of_decoder_starts_from_disk(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    other = Asked(request.getfixturevalue(family), tmp_path, 2)
    first = [other.request(n, frame, FIRST) for n, frame in enumerate(other.frames)]
    later = other.questions(3)
    with other.on_disk(tmp_path / "kept"):
        other.run(first, LIMITS)
        ended = other.run(later, LIMITS)
    assert (ended.stats.num_images, ended.stats.num_images_read) == (0, 2)
    assert ended.tokens(later) == other.want(later)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in range(1, 40))]
)
def test_mixes_that_start_from_memory_and_from_disk_answer_as_live(
    asked: Asked, seed: int, tmp_path: Path
) -> None:
    """Run mixes one after the other over one cache that is too small for all."""
    rng, num_requests, most = random.Random(seed), *((12, 12) if seed else (4, 5))
    parts = [mixed_parts(rng, list(asked.frames)) for _ in range(6)]
    with asked.on_disk(tmp_path, max_bytes=rng.choice([1 << 18, 1 << 20, 1 << 24])):
        for _ in range(3):
            requests = [
                asked.request(n, *variant(rng, rng.choice(parts)), max_tokens=rng.randint(1, most))
                for n in range(num_requests)
            ]
            limits = BatchLimits(rng.choice([1, 3, 8]), rng.randint(1, 4), rng.choice([16, 64, 2048]))
            assert asked.run(requests, limits).tokens(requests) == asked.want(requests)
