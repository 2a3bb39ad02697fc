"""The size that a store may have: respected before pass one starts and while it writes."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Run
from screens import folder_of
from store_samples import manifest, new_store, pixels, write

from cache.base.errors import InputError
from cache.base.text import parse_age_s, parse_size, percent
from cache.layout import stored_bytes
from cache.manifest import write_manifest
from cache.stats import LimitReachedError, StoreLimit
from cache.store import Store


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("50GB", 50 * 10**9),
        ("1.5 TB", 15 * 10**11),
        ("500m", 5 * 10**8),
        ("64GiB", 64 << 30),
        ("7", 7),
        ("12kB", 12000),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, num_bytes: int) -> None:
    assert parse_size(text, "--max-size") == num_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5 cats", "1e9", "1,5GB", "9" * 400 + "GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--max-size is .* expected a size such as 50GB"):
        parse_size(text, "--max-size")


def test_ages_are_read_as_people_write_them() -> None:
    assert [parse_age_s(text, "") for text in ("30d", "12h", "2w")] == [2592000, 43200, 1209600]
    with pytest.raises(InputError, match="expected an age such as 30d"):
        parse_age_s("soon", "--max-age")


@dataclass
class Looks:
    """Counts how often a store is looked through."""

    count: int = 0

    def __call__(self, path: Path) -> int:
        self.count += 1
        return stored_bytes(path)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    counting = Looks()
    monkeypatch.setattr("cache.stats.stored_bytes", counting)
    return counting


def fill(store: Store, limit: StoreLimit, num_entries: int) -> int:
    for number in range(num_entries):
        try:
            limit.take(384)
        except LimitReachedError:
            return number
        write(store, number)
    return num_entries


def test_writing_stops_at_the_limit_and_looks_a_few_times_only(tmp_path: Path, looks: Looks) -> None:
    store = new_store(tmp_path)
    limit = StoreLimit(store, 500_000)
    num_written = fill(store, limit, 1000)
    assert 150 < num_written < 500_000 / 1900
    assert stored_bytes(store.path) <= 500_000
    assert looks.count < 12


def test_what_others_write_counts(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    limit = StoreLimit(store, 100_000)
    for number in range(1000, 1040):
        write(store, number)
    assert fill(store, limit, 100) < 25  # half of what was left when the others began


def test_without_a_limit_nothing_is_looked_through(tmp_path: Path, looks: Looks) -> None:
    store = new_store(tmp_path)
    limit = StoreLimit.of(store, {})
    assert fill(store, limit, 5) == 5
    limit.require(1 << 60, 1)
    assert looks.count == 0


def test_a_limit_that_is_no_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SEEONCE_STORE_MAX is 'much'"):
        StoreLimit.of(new_store(tmp_path), {"SEEONCE_STORE_MAX": "much"})


def test_the_message_names_what_would_free_space(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for number in range(3):
        write(store, number)
    write_manifest(store.home, manifest(2))
    with pytest.raises(LimitReachedError) as raised:
        StoreLimit(store, 7000).require(5000, 1)
    line = str(raised.value)
    assert re.match(
        r"Encoding needs up to 5.0 kB more: the store has 6.\d kB and SEEONCE_STORE_MAX allows", line
    )
    assert re.search(r"gc frees 0 kB; least recently used: a-recording \(4.\d kB, last used 20", line)
    assert pixels(1).hex not in line


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A recording of three frames."""
    return folder_of(tmp_path / "monday")


def test_encode_refuses_before_it_starts(
    run: Run, home: Path, images: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEONCE_STORE_MAX", "5kB")
    ended = run("seeonce encode", images, "--model", plain)
    assert ended.code == 1
    assert "SEEONCE_STORE_MAX allows 5.0 kB" in ended.error


def test_encode_stops_at_the_limit_and_keeps_what_is_encoded(
    run: Run, home: Path, images: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run("seeonce encode --json --limit 1", images, "--model", plain).json["num_bytes"]
    monkeypatch.setenv("SEEONCE_STORE_MAX", str(2 * (one + 3000)))
    monkeypatch.setattr(StoreLimit, "require", lambda *_: None)  # others took the room after the estimate
    ended = run("seeonce encode --json", images, "--model", plain)
    assert ended.code == 3
    assert (ended.json["num_encoded"], ended.json["interrupted"]) == (2, False)
    assert "stopped: what is there stays, and nothing more is written: the store has" in ended.err
    assert run("seeonce store check --read-data").code == 0
    monkeypatch.delenv("SEEONCE_STORE_MAX")
    assert run("seeonce encode --json", images, "--model", plain).json["num_hits"] == 2


def test_a_share_is_called_all_or_nothing_only_when_it_is() -> None:
    shares = (0, 0.0003, 0.004, 0.5, 0.996, 0.9997, 1, None)
    assert [percent(share) for share in shares] == [
        "0 %", "0.1 %", "0.4 %", "50 %", "99.6 %", "99.9 %", "100 %", "–",
    ]  # fmt: skip
