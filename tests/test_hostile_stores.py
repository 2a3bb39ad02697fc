"""A store that somebody else filled: nothing in it leads out, hangs, takes memory or runs.

Everything here is well sealed: whoever can write a store can compute digests too.
"""

import ast
import json
import os
import resource
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from store_samples import (
    SPEC,
    entry_files,
    entry_folder,
    features,
    manifest,
    new_store,
    pixels,
    same,
    write,
)

from cache.base.canonical_json import UNSEALED, record_to_json, seal, unseal
from cache.base.errors import SeeonceError, StoreError
from cache.base.home import Home
from cache.check import check_store
from cache.entry import decode_entry
from cache.gc import collect
from cache.key import EntryKey, entry_key
from cache.layout import stored_entries
from cache.manifest import list_manifests, manifest_path, read_manifest, write_manifest
from cache.pixel_index import PixelIndex
from cache.store import Store

ROOT = Path(__file__).parent.parent
OURS = ("cache", "checkpoint", "infer", "precompute", "sources", "seeonce")
RUNS_CODE = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "yaml"}


def reseal(raw: bytes, change: Callable[[Any], Any]) -> bytes:
    """Change a sealed document and seal it again."""
    document = json.loads(raw)
    attributes = document.get("attributes", {}).get("seeonce", document)
    attributes["metadata_digest"] = UNSEALED
    return seal(change(document) or document)


def sealed_text(text: bytes) -> bytes:
    """Fill in the seal of a text that no JSON writer of ours would make."""
    field = b'"metadata_digest":"%s",' % (b"0" * 64)
    digest = blake3(text.replace(field, b"")).hexdigest().encode()
    return text.replace(field, field.replace(b"0" * 64, digest))


def set_attribute(name: str, value: Any) -> Callable[[Any], None]:
    return lambda document: document["attributes"]["seeonce"].__setitem__(name, value)


@pytest.mark.parametrize(
    "shape",
    [[1 << 31, 6, 8], [4, 1 << 40, 8], [4, 6, 1 << 62], [1 << 62, 1 << 62, 1 << 62], [0, 6, 8], [-4, -6, 8]],
)
def test_an_absurd_shape_is_refused_before_anything_is_allocated(tmp_path: Path, shape: list[int]) -> None:
    store = new_store(tmp_path)
    key = write(store)
    metadata, chunk = entry_files(store, key)

    def absurd(document: Any) -> None:
        document["shape"] = document["chunk_grid"]["configuration"]["chunk_shape"] = shape
        document["attributes"]["seeonce"]["grid_thw"] = [1, 2, 2 * max(1, abs(shape[1]))]

    metadata.write_bytes(reseal(metadata.read_bytes(), absurd))
    os.truncate(chunk, 1 << 32)  # sparse: it has the length of a large entry
    tracemalloc.start()
    assert store.check(key) is not None
    assert store.read(key) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_chunk_that_is_shorter_than_its_shape_is_refused_before_anything_is_allocated(
    tmp_path: Path,
) -> None:
    """A shape within the limit and all digests right, but no such file: 2 GB must not be taken for it."""
    store = new_store(tmp_path)
    spec = replace(SPEC, out_hidden_size=1 << 20)
    key = entry_key(pixels(0), spec.encoder_id)
    metadata = entry_files(store, write(store))[0]

    def large(document: Any) -> None:
        document["shape"] = document["chunk_grid"]["configuration"]["chunk_shape"] = [4, 256, 1 << 20]
        changes = {"key": key.hex, "encoder": record_to_json(spec), "encoder_id": spec.encoder_id.hex}
        document["attributes"]["seeonce"] |= {**changes, "grid_thw": [1, 32, 32]}

    raw = reseal(metadata.read_bytes(), large)
    assert decode_entry(raw, key).nbytes == 1 << 31
    folder = entry_folder(store, key)
    folder.mkdir(parents=True)
    (folder / "zarr.json").write_bytes(raw)
    (folder / "c.0.0.0").write_bytes(bytes(1000))
    tracemalloc.start()
    assert store.read(key) is None
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


NONSENSE: dict[str, Callable[[bytes], bytes]] = {
    "nested a hundred thousand deep": lambda raw: b"[" * 100_000,
    "objects nested deep, sealed": lambda raw: sealed_text(
        b'{"attributes":{"seeonce":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000
        + b',"metadata_digest":"%s",' % (b"0" * 64) + b'"z":1}}'
    ),
    "a field twice": lambda raw: sealed_text(
        _unsealed(raw).replace(b'"shape":', b'"shape":[1,1,1],"shape":', 1)
    ),
    "NaN": lambda raw: sealed_text(_unsealed(raw).replace(b'"fill_value":0', b'"fill_value":NaN')),
    "infinity": lambda raw: sealed_text(_unsealed(raw).replace(b'"fill_value":0', b'"fill_value":1e999')),
    "a number of ten thousand digits": lambda raw: sealed_text(
        _unsealed(raw).replace(b'"merge_size":2', b'"merge_size":' + b"2" * 10_000, 1)
    ),
    "not UTF-8": lambda raw: sealed_text(_unsealed(raw).replace(b"a chip", b"\xff\xfe")),
    "two seals": lambda raw: raw.replace(b'"dtype"', b'"metadata_digest":"%s","dtype"' % (b"1" * 64), 1),
    "a huge attribute": lambda raw: raw.replace(b"a chip", b"x" * (1 << 20)),
    "a field that is not ours": lambda raw: reseal(raw, set_attribute("zzz", 1)),
    "true for a number": lambda raw: reseal(raw, set_attribute("merge_size", True)),
    "the key of another": lambda raw: reseal(raw, set_attribute("key", "../" * 10)),
    "pixels that are none": lambda raw: reseal(raw, set_attribute("pixels", "../../etc/passwd")),
    "another codec": lambda raw: reseal(
        raw, lambda document: document.update(codecs=[{"name": "numcodecs.pickle"}])
    ),
    "a transformer of storage": lambda raw: reseal(
        raw, lambda document: document.update(storage_transformers=[{"name": "x"}])
    ),
    "an array": lambda raw: b"[]",
    "nothing": lambda raw: b"",
}  # fmt: skip


def _unsealed(raw: bytes) -> bytes:
    digest = unseal(raw, "entry").child("attributes").child("seeonce").text("metadata_digest")
    return raw.replace(digest.encode(), b"0" * 64)


@pytest.mark.parametrize("name", NONSENSE)
def test_metadata_that_is_nonsense_is_a_miss(tmp_path: Path, name: str) -> None:
    store = new_store(tmp_path)
    key = write(store)
    metadata = entry_files(store, key)[0]
    metadata.write_bytes(NONSENSE[name](metadata.read_bytes()))
    assert store.peek(key) is None
    assert store.check(key) is not None
    assert store.read(key) is None
    assert same(store.read(write(store)), features(0))


def test_the_unchanged_text_sealed_the_same_way_is_an_entry(tmp_path: Path) -> None:
    """The control: what is refused above is refused for what it says."""
    store = new_store(tmp_path)
    key = write(store)
    metadata = entry_files(store, key)[0]
    raw = metadata.read_bytes()
    assert sealed_text(_unsealed(raw)) == reseal(raw, lambda document: None) == raw
    assert same(store.read(key), features(0))


@pytest.mark.parametrize(
    "which", [pytest.param(0, marks=pytest.mark.campaign), 1], ids=["zarr.json", "chunk"]
)
@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "endless"])
def test_what_is_no_file_does_not_hang_a_reader_or_a_writer(tmp_path: Path, which: int, kind: str) -> None:
    script = (
        "import sys; from pathlib import Path; from store_samples import *\n"
        "store = new_store(Path(sys.argv[1])); key = next(iter(store.keys()))\n"
        "assert store.peek(key) is None and store.check(key) and store.read(key) is None\n"
        "write(store); assert same(store.read(key), features(0))\n"
    )
    store = new_store(tmp_path)
    path = entry_files(store, write(store))[which]
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made, pytest.MonkeyPatch.context() as patch:
            patch.chdir(path.parent)  # the path of a socket has a hundred bytes at most
            made.bind(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to("/dev/stdin")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, timeout=60, check=True)


@pytest.mark.parametrize("level", ["frames", "group", "entry", "zarr.json", "c.0.0.0"])
def test_a_symlink_at_any_level_leads_nowhere(tmp_path: Path, level: str) -> None:
    """A whole, right copy of the entry lies outside: it must be neither read, touched nor moved."""
    store = new_store(tmp_path)
    key = write(store)
    folder = entry_folder(store, key)
    path = {"frames": folder.parent.parent, "group": folder.parent, "entry": folder}.get(
        level, folder / level
    )
    outside = tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    before = sorted((str(item), item.stat().st_mtime_ns) for item in tmp_path.glob("outside/**/*"))
    assert store.peek(key) is None
    assert store.check(key) is not None
    assert store.read(key) is None
    assert sorted((str(item), item.stat().st_mtime_ns) for item in tmp_path.glob("outside/**/*")) == before
    assert outside.exists()


@pytest.mark.parametrize("level", ["frames", "group", "tmp"])
def test_a_writer_follows_no_symlink_out_of_the_store(tmp_path: Path, level: str) -> None:
    store = new_store(tmp_path)
    key = entry_key(pixels(0), SPEC.encoder_id)
    path = {"frames": store.path / "frames", "tmp": store.path / "tmp"}.get(
        level, entry_folder(store, key).parent
    )
    if path.exists():
        path.rename(tmp_path / "old")
    (tmp_path / "outside").mkdir()
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="cannot write entry"):
        write(store)
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("folder", ["thumbs", "index", "recordings/a", "recordings/a/b"])
def test_a_collection_removes_nothing_through_a_symlink(tmp_path: Path, folder: str) -> None:
    store, outside = new_store(tmp_path), tmp_path / "outside"
    victims = [outside / sub / f".precious.{'0' * 16}" for sub in ("", "b")]
    for victim in victims:
        victim.parent.mkdir(exist_ok=True)
        victim.touch()
        os.utime(victim, (1, 1))
    link = store.path / folder
    if link.exists():
        link.rmdir()
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    assert collect(store).num_files == 0
    assert all(victim.exists() for victim in victims)


def test_an_index_that_is_a_symlink_is_neither_read_nor_written(tmp_path: Path) -> None:
    store, outside = new_store(tmp_path), tmp_path / "outside"
    outside.mkdir()
    (store.path / "index").rmdir()
    (store.path / "index").symlink_to(outside)
    with PixelIndex(store.home) as index:
        index.put_note("a", "b")
        assert index.get_note("a") is None
    assert list(outside.iterdir()) == []


def test_a_group_that_is_a_symlink_neither_counts_nor_stops_a_collection(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    group = entry_folder(store, write(store)).parent
    group.rename(tmp_path / "outside")
    for entry in (tmp_path / "outside").iterdir():
        os.utime(entry, (1, 1))
    group.symlink_to(tmp_path / "outside")
    assert list(stored_entries(store.path)) == []
    assert collect(store).num_entries == 0


@pytest.mark.parametrize("num_bits", [63, 1400, 13_000])
@pytest.mark.parametrize("field", ["index", "timestamp_s", "num_tokens", "grid_thw"])
def test_a_manifest_with_an_absurd_number_is_one_clear_problem(
    tmp_path: Path, field: str, num_bits: int
) -> None:
    store = new_store(tmp_path)
    path = write_manifest(store.home, manifest(2))
    absurd = [1 << num_bits] * 3 if field == "grid_thw" else 1 << num_bits
    path.write_bytes(
        reseal(path.read_bytes(), lambda document: document["frames"][0].__setitem__(field, absurd))
    )
    with pytest.raises(StoreError, match=f"{field} should be"):
        read_manifest(path)


def test_an_encoder_with_a_text_that_is_no_unicode_is_one_clear_problem(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    path = write_manifest(store.home, manifest(2))
    path.write_bytes(
        reseal(path.read_bytes(), lambda document: document["encoder"].__setitem__("strict", "\ud800"))
    )
    [problem] = check_store(store).problems
    assert (problem.kind, "surrogates" in problem.reason) == ("manifest", True)


@pytest.mark.parametrize(
    "recording_id", ["..", "../..", "a/../..", "/etc", "a\\..\\b", ".hidden", "", "a\nb", "x" * 300]
)
def test_a_recording_id_cannot_leave_the_store(tmp_path: Path, recording_id: str) -> None:
    store = new_store(tmp_path)
    with pytest.raises(StoreError, match="recording id"):
        manifest_path(store.home, recording_id, SPEC.encoder_id)
    path = write_manifest(store.home, manifest(2))
    raw = reseal(path.read_bytes(), lambda document: document["recording"].__setitem__("id", recording_id))
    path.write_bytes(raw)
    problems: list[str] = []
    assert list_manifests(store.home, problems.append) == []
    assert len(problems) == 1


@pytest.mark.parametrize("key", ["../../../etc/passwd", "0" * 63, "A" * 64, "0" * 64 + "/..", ""])
def test_a_key_that_is_a_path_is_no_key(tmp_path: Path, key: str) -> None:
    store = new_store(tmp_path)
    path = write_manifest(store.home, manifest(2))
    path.write_bytes(
        reseal(path.read_bytes(), lambda document: document["frames"][0].__setitem__("key", key))
    )
    with pytest.raises(SeeonceError):
        read_manifest(path)
    with pytest.raises(ValueError, match="64 lower-case"):
        EntryKey.from_hex(key)


def test_a_manifest_that_is_a_sparse_giant_is_refused_unread(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    path = write_manifest(store.home, manifest(2))
    os.truncate(path, 1 << 42)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StoreError, match="cannot read manifest"):
        read_manifest(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # kB on Linux


@pytest.mark.parametrize(
    "content", [b"[" * 60_000, b'{"format":1e999}', b'{"format":1,"format":2}', b"\xff\xfe{}"]
)
def test_a_hostile_store_json_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    store = new_store(tmp_path)
    (store.path / "store.json").write_bytes(content)
    with pytest.raises(StoreError, match="remove that file"):
        Store.open(Home(tmp_path / "home"))


def test_nothing_of_ours_imports_what_runs_code_that_it_reads() -> None:
    sources = [
        path
        for name in OURS
        for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
    ]
    assert len(sources) > 60
    for source in sources:
        text = source.read_text(encoding="utf-8")
        if not any(word in text for word in (*RUNS_CODE, "allow_pickle", "eval", "exec", "__import__")):
            continue  # parsing takes ten times as long
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            # What Ray carries between a driver and its own workers is pickled, by Ray itself as well.
            allowed = {"pickle"} if source == ROOT / "seeonce" / "fleet.py" else set()
            assert not RUNS_CODE - allowed & {name.partition(".")[0] for name in names}, source
            if isinstance(node, ast.Call):
                assert not {word.arg for word in node.keywords} & {"allow_pickle"}, source
                called = node.func.id if isinstance(node.func, ast.Name) else ""
                assert called not in ("eval", "exec", "__import__"), source
