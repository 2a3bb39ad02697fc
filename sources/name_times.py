"""The moments that names of screenshots and recordings tell, as macOS, Windows, Linux, Android and the usual
tools write them in many languages: a date, hours, minutes and seconds, and a word for the half of the day."""

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

# Words for the halves of the day, before the time and after it; their dots and spaces may be left out.
_AM_BEFORE = "a.m. 오전 午前 上午 凌晨 清晨 早上 早晨 午夜 半夜 öö de. முற்பகல்"
_PM_BEFORE = "p.m. 오후 午後 下午 中午 傍晚 晚上 ös du. பிற்பகல்"
_AM_AFTER = """a.m. da.manhã öö π.μ. пр.об. д.п. dop. vorm. fm ap. sa pg ص ق.ظ. قبل.دوپہر לפנה״צ पूर्वाह्न म.पू.
    পূর্বাহ্ণ ਪੂ.ਦੁ. முற்பகல் ก่อนเที่ยง 오전 午前 上午"""
_PM_AFTER = """p.m. da.tarde ös μ.μ. сл.об. п.п. odp. nachm. em ip. ch ptg م ب.ظ. بعد.دوپہر אחה״צ अपराह्न म.उ.
    অপরাহ্ণ ਬਾ.ਦੁ. பிற்பகல் หลังเที่ยง 오후 午後 下午"""

_BUDDHIST_YEARS = 543  # ahead of ours: what a Mac in Thailand writes
_FRACTION_DIGITS = (3, 6)  # milliseconds, microseconds


def _plain(text: str) -> str:
    """Fold case, width, compositions and digits; leave out unseen marks, such as those for right to left."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    if folded.isascii():
        return folded
    seen = (character for character in folded if unicodedata.category(character) != "Cf")
    return "".join(str(int(character)) if character.isdecimal() else character for character in seen)


def _any_of(words: str) -> str:
    return "|".join(
        r"[.\s]*".join(re.escape(part) for part in _plain(word).split(".")) for word in words.split()
    )


_NUMBER = r"(?:(?<=\D)\d{1,2}|\d\d)"  # one digit only where a separator stands in front
_DATE_SEPARATOR = r"(?:[-._ ]|[年월月년]\s?)?"
_TIME_SEPARATOR = r"(?:[-._:꞉∶]|\s?(?:h|min|m|[時时點点分시분])\s?)"
_MOMENT = re.compile(
    rf"""(?<!\d)(?P<zone>(?<![a-z])(?:gmt|pxl_))?
        (?<!\d)(?P<year>(?:19|20|25)\d\d){_DATE_SEPARATOR}(?P<month>{_NUMBER}){_DATE_SEPARATOR}(?P<day>{_NUMBER})
        [日일]?(?P<gap>\D{{0,24}}?)
        (?P<hour>\d\d|\d(?={_TIME_SEPARATOR}))(?P<separator>{_TIME_SEPARATOR})?(?P<minute>\d\d)
        (?:{_TIME_SEPARATOR}?(?P<second>\d\d)(?:\s?s|[秒초])?
        (?:[.,](?P<fraction>\d{{1,9}})|[_-](?P<number>\d+)|(?P<milliseconds>\d{{3}}))?)?
        (?![\dx])(?P<utc>z(?![a-z])|\s?utc)?(?:\s*(?:(?P<am>{_any_of(_AM_AFTER)})|(?P<pm>{_any_of(_PM_AFTER)}))(?!\w))?""",
    re.VERBOSE,
)
_HALF_BEFORE = re.compile(
    rf"(?<![^\W\d_])(?:(?P<am>{_any_of(_AM_BEFORE)})|(?P<pm>{_any_of(_PM_BEFORE)}))\s*$"
)
_SHORT_GAP = re.compile(r"[\s_-]*t?|\s+at\s+")
_ONE_WORD = re.compile(r"\s+\w+\s+")
_GAP_END = re.compile(r".*[\s_-]", re.DOTALL)


def moment_of(name: str) -> float | None:
    """Return the POSIX seconds of the first date and time in a name that the calendar knows."""
    return moments_of([name])[0]


def moments_of(names: Sequence[str]) -> list[float | None]:
    """Return the POSIX seconds that each name tells, local time unless it says UTC; ``None`` for no time.

    A number after the time, as in ``20261121_103205_750``, is a fraction of a second where all such numbers
    are written with three or six digits and do not just count; else it tells nothing.
    """
    found = [_first_moment(_plain(name)) for name in names]
    numbers = [number for moment in found if moment and (number := moment[1])]
    are_fractions = len({len(number) for number in numbers}) == 1 and len(numbers[0]) in _FRACTION_DIGITS
    are_fractions = are_fractions and not _count(numbers)
    return [
        moment and moment[0] + (float(f"0.{moment[1]}") if are_fractions and moment[1] else 0.0)
        for moment in found
    ]


def _count(numbers: Sequence[str]) -> bool:
    values = sorted(map(int, numbers))
    return values[0] <= 2 and values == list(range(values[0], values[0] + len(values)))


def _first_moment(text: str) -> tuple[float, str] | None:
    """Return POSIX seconds, and the digits of a number after the time."""
    start = 0
    while (match := _MOMENT.search(text, start)) is not None:
        if (moment := _read(match)) is not None:
            return moment
        start = match.end("day")
    return None


def _read(match: re.Match[str]) -> tuple[float, str] | None:
    before = _HALF_BEFORE.search(match["gap"])
    if not _is_gap(match, before):
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in match.group(*_FIELDS))
    am, pm = (match[half] or (before and before[half]) for half in ("am", "pm"))
    if am or pm:
        if hour > 12:
            return None
        hour = hour % 12 + (12 if pm else 0)
    year -= _BUDDHIST_YEARS if year >= 2500 else 0
    fraction = (match["fraction"] or match["milliseconds"] or "").ljust(6, "0")[:6]
    zone = UTC if match["zone"] or match["utc"] else None
    try:
        moment = datetime(year, month, day, hour, minute, second, int(fraction), zone)
        return moment.timestamp(), match["number"] or ""
    except (ValueError, OverflowError):
        return None


_FIELDS = ("year", "month", "day", "hour", "minute", "second")


def _is_gap(match: re.Match[str], half: re.Match[str] | None) -> bool:
    """Tell whether what stands between a date and numbers lets these be its time.

    Any words may; but digits alone are a time only after one word, hours and minutes only next to the date.
    """
    gap, is_separated = match["gap"], match["separator"] is not None
    is_short = _SHORT_GAP.fullmatch(gap) is not None
    if match["second"] is None:
        return is_separated and is_short
    if is_separated:
        return is_short or half is not None or _GAP_END.fullmatch(gap) is not None
    return is_short or _ONE_WORD.fullmatch(gap) is not None
