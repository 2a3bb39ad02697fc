"""The report in a real browser: it opens fast, filters, searches, is driven by keys, and asks nobody."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from run_samples import answer, big_run, line, run_of
from screens import noise

from cache.thumbnails import shrink
from infer.sampling import Sampling
from seeonce.runs.report.report import render_report
from seeonce.runs.run import Run
from seeonce.runs.score import Expected
from seeonce.runs.sheet import make_sheet

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")

NUM_FRAMES, NUM_PROMPTS = 182, 6  # as many as a day has
NUM_FEW = 36
HOSTILE = (
    "</script><script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title='owned'\"> & <b>bold</b>",
    "a\u202egnp.exe\u202c \u2067rtl\u2069 \x00\x1b[31m\x07",
    "{{ 7 * 7 }} {% raw %} '\" onload=alert(1) \ud800",
    "x" * 100_000,
    "word " * 20_000,
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as started:
        yield started


def _with_pictures(file: Path, num_frames: int) -> Path:
    """Write a report of six prompts, each frame with a picture of its own, as large as they get."""
    screen = noise(0, 480, 300)
    pictures = [shrink(Image.blend(screen, noise(number, 480, 300), 0.5)) for number in range(8)]

    def picture_of(key: str) -> bytes:
        number = int(key, 16)
        return pictures[number % 8] + f"{number:08}".encode()  # distinct, as real ones are

    sheet = make_sheet([big_run(num_frames, NUM_PROMPTS, lambda frame: f"{frame:064x}")])
    file.write_text(render_report(sheet, picture_of, lambda _: 400), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a day."""
    return _with_pictures(tmp_path_factory.mktemp("report") / "report.html", NUM_FRAMES)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same report of the first frames alone: the browser takes half a second for a day's."""
    return _with_pictures(tmp_path_factory.mktemp("report") / "report.html", NUM_FEW)


def _written(tmp_path: Path, runs: list[Run], picture: bytes | None = None) -> Path:
    file = tmp_path / "report.html"
    file.write_text(render_report(make_sheet(runs), lambda _: picture, lambda _: 10), encoding="utf-8")
    return file


def _set(browser: Browser, name: str, value: str | bool) -> None:
    what = "checked" if isinstance(value, bool) else "value"
    browser.evaluate(
        f"(() => {{ const control = document.getElementById({json.dumps(name)}); "
        f"control.{what} = {json.dumps(value)}; "
        "control.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def _before_and_after(*texts: tuple[str, str]) -> list[Run]:
    """Return two runs that asked the same in the same way, and what they got of each frame."""
    return [
        run_of([answer(frame, pair[side]) for frame, pair in enumerate(texts)], f"20261121-10000{side}-aaaa")
        for side in range(2)
    ]


def _count(browser: Browser) -> str:
    return str(browser.evaluate("document.getElementById('count').textContent"))


def test_a_report_of_182_frames_and_6_prompts_shows_them_all_and_fits_a_mail(
    browser: Browser, big: Path
) -> None:
    assert 5_000_000 < big.stat().st_size < 15_000_000
    browser.look(1400, 1000)
    browser.open(big)
    assert browser.evaluate("document.querySelectorAll('#rows tbody tr').length") == NUM_FRAMES


@pytest.mark.campaign
def test_a_report_of_182_frames_and_6_prompts_opens_in_two_seconds(browser: Browser, big: Path) -> None:
    browser.look(1400, 1000)
    seconds = [browser.open(big) for _ in range(3)]
    print(f"{big.stat().st_size / 1e6:.1f} MB opens in {', '.join(f'{one:.2f}' for one in seconds)} s")
    assert min(seconds) < 2


def test_every_picture_of_the_report_is_shown(browser: Browser, tmp_path: Path) -> None:
    results = [answer(frame, "same", key="1" * 64) for frame in range(3)]
    file = _written(tmp_path, [run_of(results)], shrink(noise(1, 480, 300)))
    browser.open(file)
    browser.evaluate("document.querySelector('.folded').open = true")
    widths = browser.evaluate("[...document.querySelectorAll('.frame img')].map(image => image.naturalWidth)")
    assert (widths, file.read_text().count("data:image/webp;base64,")) == ([480] * 4, 1)


def test_a_picture_is_larger_after_a_click_and_small_again_after_another(
    browser: Browser, tmp_path: Path
) -> None:
    browser.look(1400, 1000)
    browser.open(_written(tmp_path, [run_of([answer(0, "a")])], shrink(noise(1, 480, 300))))
    browser.evaluate("document.querySelector('.picture').click()")
    assert browser.evaluate("document.querySelector('#large img').clientWidth") > 1000
    browser.evaluate("document.querySelector('#large').click()")
    assert not browser.evaluate("document.querySelector('#large').open")


def test_neighbours_with_equal_answers_are_one_row_with_all_their_frames(
    browser: Browser, tmp_path: Path
) -> None:
    texts = ["mail", "mail", "mail", "chat", "mail"]
    browser.open(_written(tmp_path, [run_of([answer(frame, text) for frame, text in enumerate(texts)])]))
    shown = "[...document.querySelectorAll('tr.stretch .number')].map(each => each.textContent)"
    assert browser.evaluate(shown) == ["frames 0–2", "frame 3", "frame 4"]
    _set(browser, "search", "0001.png")
    assert _count(browser) == "3 of 5 frames"


def test_the_report_asks_nobody_for_anything(browser: Browser, report: Path) -> None:
    browser.open(report)
    assert browser.requests
    assert {address.partition(":")[0] for address in browser.requests} <= {"file", "data"}
    blocked = browser.evaluate(
        "new Promise(done => { document.addEventListener('securitypolicyviolation', "
        "e => done(e.effectiveDirective)); new Image().src = 'http://127.0.0.1:9/x.png'; })"
    )
    assert blocked == "img-src"
    browser.problems.clear()


def test_search_keeps_the_rows_with_all_the_words(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.press("/")
    browser.type("Afternoon 0021.png")
    assert _count(browser) == f"1 of {NUM_FEW} frames"
    browser.press("Escape")
    assert _count(browser) == f"{NUM_FEW} of {NUM_FEW} frames"
    _set(browser, "search", "no such word")
    assert not browser.evaluate("document.getElementById('none').hidden")


def test_filters_keep_failures_applications_and_differences(browser: Browser, report: Path) -> None:
    browser.open(report)
    _set(browser, "failed", True)
    assert _count(browser) == f"1 of {NUM_FEW} frames"
    browser.open(report)
    _set(browser, "app", "terminal")
    assert _count(browser) == f"9 of {NUM_FEW} frames"
    _set(browser, "activity", "reading a page")
    assert _count(browser) == f"9 of {NUM_FEW} frames"


def test_only_rows_where_variants_of_a_prompt_differ_can_be_kept(browser: Browser, tmp_path: Path) -> None:
    browser.open(_written(tmp_path, _before_and_after(("a", "a"), ("b", "c"), ("d", "d"))))
    _set(browser, "differs", True)
    assert _count(browser) == "1 of 3 frames"
    _set(browser, "baseline", "")
    assert _count(browser) == "1 of 3 frames"


def test_words_that_changed_between_two_runs_are_marked(browser: Browser, tmp_path: Path) -> None:
    pair = (line("a mail about money"), line("a long mail about"))
    browser.open(_written(tmp_path, _before_and_after(pair)))
    changes = "[...document.querySelectorAll('.part ins, .part del')]"
    marked = f"{changes}.map(e => e.tagName + ' ' + e.textContent.trim())"
    browser.wait(f"{changes}.length == 2")
    assert browser.evaluate(marked) == ["INS long", "DEL money"]
    _set(browser, "baseline", "")
    assert browser.evaluate(marked) == []


def test_the_order_by_difference_puts_the_most_different_first(browser: Browser, tmp_path: Path) -> None:
    texts = [("same", "same"), ("one two three four", "one two three five"), ("one", "two")]
    browser.open(_written(tmp_path, _before_and_after(*texts)))
    _set(browser, "order", "difference")
    order = "[...document.querySelectorAll('#rows tbody tr')].map(row => row.dataset.place.slice(-1)).join()"
    assert browser.evaluate(order) == "2,1,0"
    _set(browser, "order", "time")
    assert browser.evaluate(order) == "0,1,2"


def test_keys_walk_through_the_frames_that_are_shown(browser: Browser, report: Path) -> None:
    browser.open(report)
    focused = "document.activeElement.dataset.place"
    for key in "jjjk":
        browser.press(key)
    assert browser.evaluate(focused) == "monday/1"
    browser.press("ArrowDown")
    assert browser.evaluate(focused) == "monday/2"
    assert browser.evaluate("document.querySelectorAll('tbody tr[tabindex=\"0\"]').length") == 1


def test_every_control_has_a_label_and_every_picture_says_what_it_is(browser: Browser, report: Path) -> None:
    browser.open(report)
    unlabelled = "[...document.querySelectorAll('input, select')].filter(e => !e.labels.length).length"
    assert browser.evaluate(unlabelled) == 0
    assert browser.evaluate("[...document.images].filter(image => !image.alt).length") == 0


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_the_contrast_that_reading_needs(dark: bool, browser: Browser, report: Path) -> None:
    browser.look(1000, 800, dark=dark)
    browser.open(report)
    worst = browser.evaluate("""(() => {
      const parse = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .03928 ? v / 12.92
        : ((v + .055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const behind = (e) => { for (; e; e = e.parentElement) {
        const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
        return [255, 255, 255]; };
      return Math.min(...[...document.querySelectorAll(
        'p, td, th, label, h1, h2, .part, .label, .number, .name, .failure, strong, li, output')]
        .map(e => [light(parse(getComputedStyle(e).color)), light(behind(e))])
        .map(([a, b]) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05)));
    })()""")
    assert worst >= 4.5


def test_nothing_is_wider_than_a_phone(browser: Browser, report: Path) -> None:
    browser.look(390, 844, mobile=True)
    browser.open(report)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_text_is_shown_as_text(number: int, browser: Browser, tmp_path: Path) -> None:
    text = HOSTILE[number]
    results = [answer(0, text, text[:300]), answer(1, line(text, text[:80], text[:80]), text[:300])]
    results.append(answer(2, "", error=text[:500], source=f"/frames/{text[:200]}"))
    browser.look(390, 844, mobile=True)
    browser.open(_written(tmp_path, [run_of(results)]))
    assert browser.evaluate("document.title").startswith("seeonce: monday")
    assert browser.evaluate("document.querySelectorAll('script, td img, td b').length") == 1
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    shown = browser.evaluate("document.querySelector('.part').textContent")
    assert not set(shown) & set("\u202e\u2067\x00\x1b\x07\ud800")
    assert shown[:40] == text[:40] or "[U+" in shown


def test_a_screenshot_can_be_looked_at(browser: Browser, report: Path, tmp_path: Path) -> None:
    browser.look(1400, 1000)
    browser.open(report)
    browser.screenshot(tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as image:
        assert image.size == (1400, 1000)
        colours = image.convert("RGB").getcolors(1 << 24) or []
    assert len(colours) > 100


def test_nothing_is_marked_between_different_questions(browser: Browser, report: Path) -> None:
    browser.open(report)
    assert browser.evaluate("document.getElementById('baseline')") is None
    assert browser.evaluate("document.querySelectorAll('ins, del').length") == 0


@pytest.fixture
def experiment(browser: Browser, tmp_path: Path) -> Path:
    """A report of two prompts in three settings over two recordings; the third says something else."""
    runs = []
    for recording in ("monday", "tuesday"):
        for number, warmth in enumerate((0.0, 0.5, 1.0)):
            texts = [("P?", "+1" if number == 2 else "=2"), ("Q?", "q")]
            answers = [
                answer(frame, text, prompt, recording=recording) for frame in (0, 1) for prompt, text in texts
            ]
            name = f"wording / {recording} / {['cold', 'warm', 'hot'][number]}"
            run_id = f"20261121-10000{number}-{recording[:4]}"
            runs.append(run_of(answers, run_id, name=name, sampling=Sampling(temperature=warmth)))
    return _written(tmp_path, runs)


def test_a_prompt_is_one_column_with_its_settings_in_it_and_recordings_stand_below_each_other(
    browser: Browser, experiment: Path
) -> None:
    browser.open(experiment)
    _set(browser, "baseline", "")
    texts = "[...document.querySelectorAll('{}')].map(each => each.innerText.replace(/\\s+/g, ' ').trim())"
    assert browser.evaluate(texts.format("#rows thead th")) == ["Frame", "A P?", "B Q?"]
    assert browser.evaluate(texts.format("#rows tr.recording")) == ["monday", "tuesday"]
    assert browser.evaluate(texts.format("tbody:last-child tr.stretch td .answer")) == [
        "1 2 =2",
        "3 +1",
        "1 2 3 q",
    ]
    assert browser.evaluate(texts.format(".about summary"))[2:5] == [
        "1 cold: a-model, usual settings",
        "2 warm: a-model, temperature 0.5",
        "3 hot: a-model, temperature 1.0",
    ]


def test_prompts_and_settings_can_be_hidden(browser: Browser, experiment: Path) -> None:
    browser.open(experiment)
    answers = "[...document.querySelectorAll('tbody:last-child tr.stretch .answer')]"
    shown = f"{answers}.filter(each => each.offsetParent).length"
    assert browser.evaluate(shown) == 3
    for what, number, left in (("variant", 2, 2), ("prompt", 1, 1)):
        browser.evaluate(f"document.querySelector('[data-hides={what}][value=\"{number}\"]').click()")
        assert browser.evaluate(shown) == left


def test_the_share_of_answers_that_are_the_baselines_is_told(browser: Browser, experiment: Path) -> None:
    browser.open(experiment)
    shares = "[...document.querySelectorAll('.as-baseline')].map(each => each.textContent)"
    assert browser.evaluate(shares) == ["100%", "100%", "0%", "100%", "100%", "100%"]
    _set(browser, "baseline", "variant 2")
    assert browser.evaluate(shares) == ["0%", "0%", "100%", "100%", "100%", "100%"]


def test_the_table_as_it_is_shown_is_saved_as_csv_without_formulas(
    browser: Browser, experiment: Path
) -> None:
    browser.open(experiment)
    _set(browser, "recording", "tuesday")
    saved = browser.evaluate(
        "new Promise(done => { URL.createObjectURL = blob => { blob.text().then(done); return '#'; }; "
        "document.getElementById('csv').click(); })"
    )
    head, first, *rest = list(csv.reader(io.StringIO(saved.lstrip("\ufeff"))))
    assert head[:7] == ["recording", "frame", "time", "file", "A1 P?", "A2 P?", "A3 P?"]
    assert first == ["tuesday", "0", "0:00", "0000.png", "'=2", "'=2", "'+1", "q", "q", "q"]
    assert len(rest) == 1


def test_answers_are_checked_where_the_truth_is_known(browser: Browser, tmp_path: Path) -> None:
    sheet = make_sheet([run_of([answer(0, "mail"), answer(1, "mail"), answer(2, "mail")])])
    truth = {("monday", 0): Expected(text="mail"), ("monday", 1): Expected(text="chat")}
    file = tmp_path / "report.html"
    file.write_text(render_report(sheet, lambda _: None, lambda _: 10, [truth]), encoding="utf-8")
    browser.open(file)
    verdicts = (
        "[...document.querySelectorAll('tr.stretch')].map(row => row.querySelector('.verdict')?.innerText)"
    )
    assert browser.evaluate(verdicts) == ["✓ true", "✗ not true", None]
    _set(browser, "wrong", True)
    assert _count(browser) == "1 of 3 frames"


def test_hostile_names_of_runs_models_and_recordings_are_shown_as_text(
    browser: Browser, tmp_path: Path
) -> None:
    texts = HOSTILE[:4]
    runs = [
        run_of([answer(0, "a", recording=text)], f"{number}-{n}", name=f"{text} / {n}", model=text)
        for number, text in enumerate(texts)
        for n in range(2)
    ]
    page = render_report(make_sheet(runs), lambda _: None, lambda _: 1, (), " ".join(texts))
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    browser.look(390, 844, mobile=True)
    browser.open(file)
    assert browser.evaluate("document.title") != "owned"
    assert (
        browser.evaluate("document.querySelectorAll('script, body b:not(#saved b), [onerror]').length") == 1
    )
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
