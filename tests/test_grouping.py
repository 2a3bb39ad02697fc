"""Several frames in one prompt: which go together, how they are shown, whose words are whose; templates."""

import pytest
from store_samples import frame

from cache.base.errors import InputError
from infer.request import Image, Text
from seeonce.runs.prompts import ImagePosition, Showing, clock, render, split_by_frame

VALUES = {"timestamp": "0:42", "frame": "4", "recording": "monday {frame}"}


def _groups(num_frames: int, size: int, stride: int | None = None) -> list[list[int]]:
    groups = Showing(size, stride).groups([frame(number) for number in range(num_frames)])
    return [[one.index for one in group] for group in groups]


@pytest.mark.parametrize(
    ("num_frames", "size", "stride", "groups"),
    [
        (5, 1, None, [[0], [1], [2], [3], [4]]), (5, 2, None, [[0, 1], [2, 3], [4]]),
        (5, 3, 1, [[0, 1, 2], [1, 2, 3], [2, 3, 4]]), (5, 3, 2, [[0, 1, 2], [2, 3, 4]]),
        (6, 3, 2, [[0, 1, 2], [2, 3, 4], [4, 5]]), (3, 8, None, [[0, 1, 2]]), (5, 2, 3, [[0, 1], [3, 4]]),
        (1, 4, 2, [[0]]), (4, 1, 2, [[0], [2]]), (0, 3, None, []),
    ],
)  # fmt: skip
def test_frames_go_together_in_order(
    num_frames: int, size: int, stride: int | None, groups: list[list[int]]
) -> None:
    assert _groups(num_frames, size, stride) == groups


@pytest.mark.parametrize(("size", "stride"), [(0, None), (-1, None), (2, 0), (2, -3)])
def test_sizes_below_one_are_refused(size: int, stride: int | None) -> None:
    with pytest.raises(InputError, match="at least 1"):
        Showing(size, stride)


def test_one_frame_is_shown_as_it_always_was() -> None:
    assert Showing().segments("What?", [frame(0)], "monday") == (Image(frame(0)), Text("What?"))
    after = Showing(image_position=ImagePosition.after).segments("What?", [frame(0)], "monday")
    assert after == (Text("What?"), Image(frame(0)))


def test_several_frames_stand_between_their_numbers_and_times() -> None:
    first, second = frame(0), frame(6)
    segments = Showing(2).segments("What?", [first, second], "monday")
    assert segments[:4] == (
        Text(f"Frame 1 ({clock(first.timestamp_s)}): "), Image(first),
        Text(f"\nFrame 2 ({clock(second.timestamp_s)}): "), Image(second),
    )  # fmt: skip
    (question,) = segments[4:]
    assert isinstance(question, Text)
    assert question.text.startswith("\nWhat?")
    assert "Frame 1: to Frame 2:" in question.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Frame 1: a\nFrame 2: b", ("a", "b")),
        ("frame 1 : a\n\nFRAME 2: b", ("a", "b")),
        ("**Frame 1:** a\n**Frame 2 (0:10):** b", ("a", "b")),
        ("## Frame 1\na\n## Frame 2\nb", ("a", "b")),
        ("- Frame #1: a\n- Frame #2: b", ("a", "b")),
        ("1. Frame 1 - a\n2. Frame 2 – b", ("a", "b")),
        ("[Frame 1]: a\n[Frame 2]: b", ("a", "b")),
        ("> *Frame 01*: a\n> *Frame 02*: b", ("a", "b")),
        ("Here you go: Frame 1: a Frame 2: b", ("a", "b")),
        ("Frame 2: b\nFrame 1: a", ("a", "b")),
        ("Frame 1: a\nmore\nFrame 2: as in Frame 1: a mail", ("a\nmore", "as in Frame 1: a mail")),
        ("Frame 1: a\nFrame 1: again\nFrame 2: b", ("a", "b")),
        ("Frame 1: a\nFrame 2: b\nFrame 3: invented", ("a", "b")),
        ("Frame 1: a", ("a", None)),
        ("Frame 2: b", (None, "b")),
        ("Frame 1:\nFrame 2: b", (None, "b")),
        ("Frame 1: a\r\nFrame 2: b", ("a", "b")),
        ("Frame 1： 画面\nFrame 2： メール", ("画面", "メール")),
        ("Frame 1: \u202eשלום\nFrame 2: 🙂", ("\u202eשלום", "🙂")),
        ("A timeframe 1: no\nframes 2: no", (None, None)),
        ("Frame 99999999999: x", (None, None)),
        ("", (None, None)),
        ("no frames at all", (None, None)),
    ],
)
def test_each_frame_gets_what_is_said_of_it(text: str, said: tuple[str | None, ...]) -> None:
    assert split_by_frame(text, 2) == said


def test_a_single_frame_needs_no_heading() -> None:
    assert split_by_frame("a mail", 1) == ("a mail",)
    assert split_by_frame("Frame 1: a mail", 1) == ("a mail",)
    assert split_by_frame(" ", 1) == (None,)


@pytest.mark.parametrize("text", ["\n" * 100_000, "*" * 100_000, "Frame 1 (" * 12_000, "frame " * 20_000])
def test_odd_answers_take_no_longer_than_their_length(text: str) -> None:
    assert split_by_frame(text, 3)[1] is None


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("At {timestamp} of {recording}, frame {frame}?", "At 0:42 of monday {frame}, frame 4?"),
        ('{"apps": [], "n": {"frame": 1}}', '{"apps": [], "n": {"frame": 1}}'),
        (
            "{{frame}} {Frame} {frame } {frames} {} { {0} {frame",
            "{4} {Frame} {frame } {frames} {} { {0} {frame",
        ),
        ("%s %(frame)s $frame \\1 \\g<0>", "%s %(frame)s $frame \\1 \\g<0>"),
    ],
)
def test_three_placeholders_are_filled_in_and_all_else_stays(template: str, text: str) -> None:
    assert render(template, VALUES) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (42.9, "0:42"), (3723, "1:02:03"), (86400, "24:00:00")]
)
def test_times_are_written_as_people_read_them(seconds: float, text: str) -> None:
    assert clock(seconds) == text
