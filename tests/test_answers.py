"""Description lines are taken apart, whatever a model does to them; reasoning is not part of the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infer.request import split_reasoning
from seeonce.runs.parse import Description, parse_description

LINE = "description: A terminal | activity: coding | apps: [terminal, browser] | topics: [deploy]"
WANT = Description("A terminal", "coding", ("terminal", "browser"), ("deploy",))


@pytest.mark.parametrize(
    "text",
    [
        LINE,
        f"Sure!\n{LINE}\n",
        LINE.replace(" | ", "\n"),
        LINE.replace("[", "").replace("]", ""),
        LINE.replace("terminal, browser", "'terminal', \"browser\""),
        LINE.replace("description", "Description").replace("apps", "APPS"),
    ],
)
def test_a_description_line_is_parsed(text: str) -> None:
    assert parse_description(text) == WANT


@pytest.mark.parametrize(
    "text", ["", "A terminal.", "description: A terminal | activity: coding", "apps: []"]
)
def test_anything_else_is_not(text: str) -> None:
    assert parse_description(text) is None


def test_empty_lists_are_empty() -> None:
    parsed = parse_description("description: x | activity: y | apps: [] | topics: []")
    assert parsed == Description("x", "y", (), ())


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    parse_description(text)
    parse_description(f"{LINE} {text}")


@pytest.mark.parametrize(
    ("text", "opened", "want"),
    [
        ("<think>hm</think>yes", False, "yes"),
        ("hm</think>\nyes", True, "yes"),
        ("<think>still thinking", False, None),
        ("still thinking", True, None),
        ("yes", False, "yes"),
        ("a < b", False, "a < b"),
    ],
)
def test_reasoning_is_no_part_of_the_text(text: str, opened: bool, want: str | None) -> None:
    assert split_reasoning(text, opened=opened)[1] == want
