"""The moments that names of screenshots tell, in the languages and tools that write them."""

import time
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sources.name_times import moment_of, moments_of, order_is_unknown

HALF_PAST_FOUR = [
    # macOS, with the 12-hour and the 24-hour clock
    "Screenshot 2025-01-02 at 4.12.30\u202fPM",
    "Screenshot 2025-01-02 at 4.12.30 PM (2)",
    "Screenshot 2025-01-02 at 4.12.30 PM 2",
    "스크린샷 2025-01-02 오후 4.12.30",
    unicodedata.normalize("NFD", "스크린샷 2025-01-02 오후 4.12.30"),
    "截屏2025-01-02 下午4.12.30",
    "屏幕快照 2025-01-02 下午4.12.30",
    "截圖 2025-01-02 下午4.12.30",
    "截屏2025-01-02 16.12.30",
    "スクリーンショット 2025-01-02 16.12.30",
    "スクリーンショット 2025-01-02 午後4.12.30",
    "Captura de pantalla 2025-01-02 a la(s) 4.12.30 p. m.",
    "Captura de pantalla 2025-01-02 a la(s) 4.12.30\xa0p.\xa0m.",
    "Captura de pantalla 2025-01-02 a las 16.12.30",
    "Captura de Tela 2025-01-02 às 16.12.30",
    "Captura de ecrã 2025-01-02, às 4.12.30 da tarde",
    "Capture d’écran, le 2025-01-02 à 16.12.30",
    "Capture d’écran, le 2025-01-02 à 16 h 12 min 30 s",
    "Bildschirmfoto 2025-01-02 um 16.12.30",
    "Schermata 2025-01-02 alle 16.12.30",
    "Schermafbeelding 2025-01-02 om 16.12.30",
    "Skärmavbild 2025-01-02 kl. 16.12.30",
    "Skærmbillede 2025-01-02 kl. 16.12.30",
    "Skjermbilde 2025-01-02 kl. 4.12.30 p.m.",
    "Näyttökuva 2025-01-02 kello 16.12.30",
    "Näyttökuva 2025-1-2 kello 4.12.30 ip.",
    "Zrzut ekranu 2025-01-02 o 16.12.30",
    "Snímek obrazovky 2025-01-02 v 4.12.30 odp.",
    "Képernyőfotó 2025-01-02 - 16.12.30",
    "Képernyőfotó 2025-01-02 - du. 4.12.30",
    "Captură de ecran din 2025-01-02 la 16.12.30",
    "Снимок экрана 2025-01-02 в 16.12.30",
    "Знімок екрана 2025-01-02 о 4.12.30 пп",
    "Ekran Resmi 2025-01-02 16.12.30",
    "Ekran Resmi 2025-01-02 ÖS 4.12.30",
    "Στιγμιότυπο 2025-01-02, 4.12.30 μ.μ.",
    "צילום מסך 2025-01-02 ב-16.12.30",
    "لقطة الشاشة \u200f٢٠٢٥-٠١-٠٢ في ٤.١٢.٣٠ م",
    "لقطة الشاشة 2025-01-02 في 4.12.30 م",
    "स्क्रीनशॉट 2025-01-02 को 4.12.30 pm",
    "स्क्रीनशॉट 2025-01-02 को 4.12.30 अपराह्न",
    "স্ক্রিনশট 2025-01-02 এ 4.12.30 PM",
    "Tangkapan Layar 2025-01-02 pukul 16.12.30",
    "Ảnh màn hình 2025-01-02 lúc 4.12.30 CH",
    "สกรีนช็อต 2568-01-02 เวลา 16.12.30",
    # Windows, GNOME, KDE, Android
    "Screenshot 2025-01-02 161230",
    "屏幕截图 2025-01-02 161230",
    "Game 2025.01.02 - 16.12.30.00",
    "Screenshot from 2025-01-02 16-12-30",
    "Screenshot from 2025-01-02 16-12-30-1",
    "Capture d’écran du 2025-01-02 16-12-30",
    "Screenshot_20250102_161230",
    "Bildschirmfoto_20250102_161230",
    "Screenshot_20250102-161230_Chrome",
    "Screenshot_2025-01-02-16-12-30-71_92460851df6f172a4592fca41cc2d2e6",
    "PXL_20250102_161230000",
    # tools
    "2025-01-02_16-12-30",
    "SNAG_2025-01-02_16_12_30",
    "2025-01-02 16_12_30-Window title 3",
    "CleanShot 2025-01-02 at 16.12.30@2x",
    "Snipaste_2025-01-02_16-12-30",
    "Xnip2025-01-02_16-12-30",
    "20250102_16h12m30s_grim",
    "vlcsnap-2025-01-02-16h12m30s000",
    "2025-01-02-161230_800x600_scrot",
    "screencapture-example-com-2025-01-02-16_12_30",
    "QQ截图20250102161230",
    "2025年1月2日16时12分30秒",
    "GMT20250102-161230_Recording_1920x1080",
    "Meeting-20250102_161230-Meeting Recording",
    "WhatsApp Image 2025-01-02 at 4.12.30 PM (1)",
    "photo_5_2025-01-02_16-12-30",
    "20250102161230_1",
    "2025-01-02 16-12-30 UTC",
    "2025-01-02 16-12-30 のスクリーンショット",
    "2024-12-31 plan, seen 2025-01-02 16.12.30",
    "image-20250102161230000",
    "KakaoTalk_20250102_161230000_01",
    "ss_2025-01-02_04-12-30_PM",
    "ss_2025-01-02_04-12-30_PM_2",
    # the year last
    "Edge 1_2_2025 4_12_30 PM",
    "Edge 1_2_2025 04_12_30 PM",
    "Edge 02.01.2025 16_12_30",
    "Bildschirmfoto 02.01.2025 um 16.12.30",
    "2 Jan 2025 at 16.12.30",
    "Screenshot 2 January 2025 16.12.30",
    "Jan 2, 2025 at 4.12.30 PM",
    "02-Jan-2025_161230",
    "January 2nd, 2025 16.12.30",
    "photo_1_5_2025-01-02_16-12-30",
    # with an offset from UTC
    "2025-01-02T18:12:30+02:00",
    "2025-01-02T11:12:30-0500",
    "2025-01-02T11:12:30.000-05:00",
    "20250102T181230+0200",
    "2025-01-02 11:12:30 -0500",
]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def _shown(name: str) -> str | None:
    moment = moment_of(name)
    return None if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize("name", HALF_PAST_FOUR)
def test_names_are_read_in_every_language_and_of_every_tool(name: str) -> None:
    assert _shown(name) == "2025-01-02 16:12:30"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("스크린샷 2025-01-02 오전 12.30.00", "00:30:00"),
        ("스크린샷 2025-01-02 오후 12.30.00", "12:30:00"),
        ("スクリーンショット 2025-01-02 午前0.30.00", "00:30:00"),
        ("スクリーンショット 2025-01-02 午後0.30.00", "12:30:00"),
        ("截圖 2025-01-02 凌晨3.30.00", "03:30:00"),
        ("截圖 2025-01-02 中午12.30.00", "12:30:00"),
        ("截圖 2025-01-02 晚上8.30.00", "20:30:00"),
        ("Στιγμιότυπο 2025-01-02, 12.30.00 π.μ.", "00:30:00"),
        ("截屏2025-01-02 晚上12.12.30", "00:12:30"),
        ("截屏2025-01-02 中午11.50.00", "11:50:00"),
        ("截屏2025-01-02 半夜11.50.00", "23:50:00"),
        ("rec_20250102_100000-0100", "10:00:00"),
        ("2025-01-02_16-12", "16:12:00"),
        ("Display 2025-01-02 04:12 PM", "16:12:00"),
        ("Screenshot 2025-01-02 at 4.12.30 ample", "04:12:30"),
    ],
)
def test_noon_midnight_and_names_without_seconds(name: str, expected: str) -> None:
    assert _shown(name) == f"2025-01-02 {expected}"


@pytest.mark.parametrize(
    "name",
    [
        "report-2025-01-02-v1.10.20",
        "IMG-20250102-WA0001",
        "SCR-20250102-kqzu",
        "Screenshot (12)",
        "minutes 2025-01-02 1612",
        "2025-13-02 10.00.00",
        "2025-02-30 10.00.00",
        "Screenshot 2025-01-02 at 13.00.00 PM",
        "2560x1440 10.00.00",
        "Screenshot 02-01-2025 16.12.30",
        "Screenshot 31-31-2025 16.12.30",
        "Edge 1_2_2025 16_12_30",
    ],
)
def test_what_is_no_time_is_not_read(name: str) -> None:
    assert moment_of(name) is None


@pytest.mark.parametrize(
    ("ends", "seconds"),
    [
        (["_1", "_2", "_9", "_10", "_11"], [0.0] * 5),
        (["", "_001", "_002"], [0.0] * 3),
        (["-7", "-750"], [0.0] * 2),
        (["_120", "_750"], [0.12, 0.75]),
        (["", "_750"], [0.0, 0.75]),
        (["_000120", "_750000"], [0.12, 0.75]),
        (["120", "750"], [0.12, 0.75]),
        ([".5", ",25"], [0.5, 0.25]),
    ],
)
def test_a_counter_after_the_time_is_no_fraction_of_a_second(ends: list[str], seconds: list[float]) -> None:
    start = datetime(2025, 1, 2, 10, tzinfo=UTC).timestamp()
    found = moments_of([f"rec_20250102_100000{end}" for end in ends])
    assert found == pytest.approx([start + second for second in seconds])


@pytest.mark.parametrize(
    ("names", "days"),
    [
        (["Edge 30.01.2025 16_12_30", "Edge 02.02.2025 10_12_30"], ["01-30", "02-02"]),
        (["shot 30-01-2025 16.12.30", "shot 02-02-2025 10.12.30"], ["01-30", "02-02"]),
        (["shot 01-30-2025 16.12.30", "shot 02-01-2025 10.12.30"], ["01-30", "02-01"]),
        (["shot 1_2_2025 4_12_30 PM", "shot 13_2_2025 4_12_30 PM"], ["02-01", "02-13"]),
        (["shot 13-02-2025 16.12.30", "shot 02-13-2025 10.12.30"], [None, None]),
    ],
)
def test_a_number_above_12_decides_for_its_folder_whether_the_day_comes_first(
    names: list[str], days: list[str | None]
) -> None:
    found = [None if moment is None else datetime.fromtimestamp(moment, UTC) for moment in moments_of(names)]
    assert [moment and moment.strftime("%m-%d") for moment in found] == days
    assert order_is_unknown(names) == (None in days)


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=30))
def test_any_name_is_a_time_or_none(start: str, end: str) -> None:
    moment_of(start)
    moment_of(f"{start}2025-01-02 {end}")
