"""The Python API: pass one, pass two and the verifier, each as one function, and the types that they take."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cache.base.errors import NotEncodedError
from cache.base.errors import SeeonceError as SeeonceError
from cache.base.home import Home
from cache.layout import entry_folder
from cache.manifest import FrameEntry, read_manifest
from cache.prefixes import prefix_cache_bytes
from cache.store import Store
from infer.sampling import Sampling as Sampling
from precompute.options import EncodeOptions
from precompute.pass_one import encode as pass_one
from precompute.pipeline import EncodeResult
from seeonce.commands.terminal import Terminal
from seeonce.runs.answer_cache import AnswerCache
from seeonce.runs.describe import DescribeResult, Session
from seeonce.runs.notebook import AnswerTable, read_table
from seeonce.runs.options import DescribeOptions
from seeonce.runs.prompts import ImagePosition as ImagePosition
from seeonce.runs.prompts import Prompt as Prompt
from seeonce.runs.prompts import Showing as Showing
from seeonce.runs.prompts import collect_prompts
from seeonce.runs.recording import find_recording, select
from seeonce.runs.writer import opened
from seeonce.verifier.canary import describe_soundly
from seeonce.verifier.levels import VerifyOptions
from seeonce.verifier.report import Level as Level
from seeonce.verifier.report import Report
from seeonce.verifier.verify import verify as verify_recording

if TYPE_CHECKING:
    import zarr


def encode(options: EncodeOptions, home: Home | None = None) -> EncodeResult:
    """Encode a recording into the store of ``home``, by default the user's. Raises ``SeeonceError``."""
    with Terminal() as terminal:
        return pass_one(home or Home.locate(), options, terminal)


def describe(options: DescribeOptions, home: Home | None = None) -> DescribeResult:
    """Ask every prompt of every encoded frame; results lie in the run's folder. Raises ``SeeonceError``."""
    home = home or Home.locate()
    with Terminal() as terminal, AnswerCache(home) as known, opened(options.output) as output:
        selected = select(home, options.recording, options.model, terminal.say)
        return describe_soundly(
            Session(home, known, output, prefix_cache_bytes()), selected, options, terminal
        )


def ask(recording: str, *prompts: str, model: str | None = None, home: Home | None = None) -> AnswerTable:
    """Ask questions about every encoded frame, and return the answers as a table.

    Raises ``SeeonceError``; after Ctrl-C the table has the answers so far.
    """
    options = DescribeOptions(collect_prompts(list(prompts), []), recording, model)
    return read_table(describe(options, home).path)


def verify(options: VerifyOptions, home: Home | None = None) -> Report:
    """Hold the store against live encoding. Raises ``SeeonceError`` when that cannot be done."""
    with Terminal() as terminal:
        return verify_recording(home or Home.locate(), options, terminal)


def entries(
    recording: str = "latest", model: str | None = None, home: Home | None = None
) -> "Iterator[tuple[FrameEntry, zarr.Array[Any]]]":
    """Yield each encoded frame of a recording with its features, a zarr array opened for reading.

    An array is ``(1 + num_deepstack, num_tokens, hidden)``, merged tokens first; bfloat16, which zarr does
    not have, is uint16 with the same bits. Each is opened after every byte of it was checked. Without
    ``model``, it is the encoding that was made last.

    Raises:
        NotEncodedError: the recording is not encoded, or an entry is missing or damaged.
    """
    import zarr

    home = home or Home.locate()
    if model is None:
        manifest = read_manifest(find_recording(home, recording)[0].path)
    else:
        manifest = select(home, recording, model, lambda _: None).manifest
    store = Store.open(home, create=False)
    for frame in manifest.frames:
        problem = store.check(frame.key)
        if problem is not None:
            raise NotEncodedError(
                f"The entry of frame {frame.index} cannot be read ({problem}): "
                f"run seeonce encode {manifest.recording.id}."
            )
        yield frame, zarr.open_array(entry_folder(store.path, frame.key), mode="r")
