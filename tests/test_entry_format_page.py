"""docs/format.md: what it shows works, and it names every field."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from store_samples import entry_folder, new_store, write

from cache.base.canonical_json import parse

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
(SNIPPET,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def field_names(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(field_names, value.values()))
    return set().union(*map(field_names, value)) if isinstance(value, list) else set()


def test_the_snippet_is_ten_lines() -> None:
    assert len(SNIPPET.splitlines()) == 10


def test_the_snippet_reads_an_entry_with_plain_zarr(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    folder = entry_folder(store, write(store))
    result = subprocess.run(
        [sys.executable, "-c", SNIPPET, str(folder)], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[1, 4, 6] (6, 8) (3, 6, 8) float32\n"


def test_every_field_of_an_entry_is_on_the_page(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    raw = (entry_folder(store, write(store)) / "zarr.json").read_bytes()
    missing = {name for name in field_names(parse(raw, "entry").raw("attributes")) if f"`{name}`" not in PAGE}
    assert missing == set()
