"""Damage of every kind, drawn at random: all of it is detected, none is served, all of it is repaired.

Sixty always, a thousand in the campaign. Each damages one or two of eight entries of one shape, in two
groups; the model is what was written.
"""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from store_samples import SPEC, entry_files, entry_folder, features, flip_bit, new_store, pixels, same, write

from cache.key import EntryKey, entry_key
from cache.store import Store

NUM_ENTRIES = 8

Damage = Callable[[random.Random, Path, Path], None]


def flip(chance: random.Random, path: Path, other: Path) -> None:
    flip_bit(path, chance.randrange(8 * path.stat().st_size))


def flip_many(chance: random.Random, path: Path, other: Path) -> None:
    for position in chance.sample(range(8 * path.stat().st_size), chance.randint(2, 64)):
        flip_bit(path, position)


def cut(chance: random.Random, path: Path, other: Path) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def extend(chance: random.Random, path: Path, other: Path) -> None:
    with path.open("ab") as file:
        file.write(chance.choice([b"\0", b" ", b"\n", chance.randbytes(chance.randint(1, 5000))]))


def delete(chance: random.Random, path: Path, other: Path) -> None:
    path.unlink()


def zero(chance: random.Random, path: Path, other: Path) -> None:
    """Zero a run of bytes, as a lost page or sector does; at least one of them was something else."""
    content = bytearray(path.read_bytes())
    start = chance.choice([at for at, byte in enumerate(content) if byte])
    stop = chance.choice([start + 1, start + 512, len(content)])
    content[start:stop] = bytes(len(content[start:stop]))
    path.write_bytes(content)


def swap(chance: random.Random, path: Path, other: Path) -> None:
    left, right = path.read_bytes(), other.read_bytes()
    path.write_bytes(right)
    other.write_bytes(left)


def copy_over(chance: random.Random, path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def swap_folders(chance: random.Random, path: Path, other: Path) -> None:
    aside = path.parent.with_name("aside")
    path.parent.rename(aside)
    other.parent.rename(path.parent)
    aside.rename(other.parent)


def duplicate_folder(chance: random.Random, path: Path, other: Path) -> None:
    shutil.rmtree(path.parent)
    shutil.copytree(other.parent, path.parent)


def rename_file(chance: random.Random, path: Path, other: Path) -> None:
    path.rename(path.with_name(chance.choice(["c", "c.0.0.1", "zarr.json.bak"])))


def replace_by_folder(chance: random.Random, path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


KINDS: tuple[Damage, ...] = (
    flip,
    flip_many,
    cut,
    extend,
    delete,
    zero,
    swap,
    copy_over,
    swap_folders,
    duplicate_folder,
    rename_file,
    replace_by_folder,
)
HURT_BOTH = (swap, swap_folders)
KEYS = {entry_key(pixels(number), SPEC.encoder_id): number for number in range(NUM_ENTRIES)}


def damage_one(store: Store, kind: Damage, chance: random.Random) -> tuple[set[EntryKey], bool]:
    """Damage an entry; return which are damaged, and whether their metadata or their length shows it."""
    hurt, other = chance.sample(list(KEYS), 2)
    which = chance.randrange(2)
    path = entry_files(store, hurt)[which]
    size = path.stat().st_size
    kind(chance, path, entry_files(store, other)[which])
    shown = which == 0 or kind in (swap_folders, duplicate_folder) or not path.is_file()
    return ({hurt, other} if kind in HURT_BOTH else {hurt}), shown or path.stat().st_size != size


def assert_detected(store: Store, damaged: set[EntryKey], shown: bool, chance: random.Random) -> None:
    """Every way to look at the store takes notice, and none serves what is damaged."""
    assert {key for key in KEYS if store.check(key) is not None} == damaged
    for key in damaged:
        assert not shown or (store.peek(key) if chance.random() < 0.5 else store.entry_info(key)) is None
        assert store.read(key) is None
        assert store.entry_info(key) is None
        assert not entry_folder(store, key).exists()
    assert all(same(store.read(key), features(KEYS[key])) for key in KEYS.keys() - damaged)


@pytest.mark.parametrize("num_damages", [60, pytest.param(1000, marks=pytest.mark.campaign)])
def test_no_damage_is_served_and_writing_again_repairs_it(tmp_path: Path, num_damages: int) -> None:
    store = new_store(tmp_path)
    for number in range(NUM_ENTRIES):
        write(store, number)
    kinds: Counter[str] = Counter()
    for seed in range(num_damages):
        chance = random.Random(seed)
        kind = KINDS[seed % len(KINDS)]
        damaged, shown = damage_one(store, kind, chance)
        assert_detected(store, damaged, shown, chance)
        for key in damaged:
            write(store, KEYS[key])
            assert same(store.read(key), features(KEYS[key]))
        kinds[kind.__name__] += len(damaged)
    print(f"{num_damages} damages, {kinds.total()} entries damaged, all detected, none served: {dict(kinds)}")


def test_a_folder_of_another_name_is_no_entry(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = write(store, 1)
    folder = entry_folder(store, key)
    for name in (key.hex[:-1], key.hex + "0", f"{key.hex}.bak", f" {key.hex[1:]}"):
        shutil.copytree(folder, folder.with_name(name))
    assert list(store.keys()) == [key]


def test_a_folder_that_lies_in_a_wrong_group_is_not_found(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    key = write(store, 1)
    wrong = store.path / "frames" / ("00" if not key.hex.startswith("00") else "01")
    wrong.mkdir()
    entry_folder(store, key).rename(wrong / key.hex)
    assert not store.has(key)
    assert list(store.keys()) == []
