"""The home: found, made private, and watched."""

import errno
import os
import stat
from pathlib import Path

import pytest

from cache.base.errors import StoreError
from cache.base.home import Home


def test_the_environment_names_the_home(tmp_path: Path) -> None:
    home = Home.locate({"SEEONCE_HOME": str(tmp_path / "here")})
    assert (home.path, home.store, home.runs) == (
        tmp_path / "here",
        tmp_path / "here" / "store",
        tmp_path / "here" / "runs",
    )


@pytest.mark.parametrize("environ", [{}, {"SEEONCE_HOME": ""}, {"SEEONCE_HOME": "  "}])
def test_without_a_setting_it_lies_in_the_users_folder(environ: dict[str, str]) -> None:
    assert Home.locate(environ).path == Path.home() / ".seeonce"


def test_a_tilde_means_the_users_folder() -> None:
    assert Home.locate({"SEEONCE_HOME": "~/elsewhere"}).path == Path.home() / "elsewhere"


def test_a_relative_home_does_not_move_with_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Home.locate({"SEEONCE_HOME": "here"}).path == tmp_path / "here"


def test_locating_creates_nothing(tmp_path: Path) -> None:
    Home.locate({"SEEONCE_HOME": str(tmp_path / "here")})
    assert list(tmp_path.iterdir()) == []


def _forbid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: str | Path | int) -> object:
        if not isinstance(path, int) and Path(path).is_relative_to(folder):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize(
    ("folder", "name", "typed"),
    [
        ("the home", "SEEONCE_HOME", '"$SEEONCE_HOME"'),
        ("the home/store", "SEEONCE_HOME/store", '"$SEEONCE_HOME"/store'),
        ("the home/runs", "SEEONCE_HOME/runs", '"$SEEONCE_HOME"/runs'),
    ],
)
def test_a_home_that_may_not_be_looked_into_says_which_command_helps_and_no_path(
    folder: str, name: str, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "the home" / "store").mkdir(parents=True)
    monkeypatch.setenv("SEEONCE_HOME", str(tmp_path / "the home"))
    _forbid(tmp_path / folder, monkeypatch)
    with pytest.raises(StoreError) as found:
        Home.locate()
    assert str(found.value).startswith(f"{name} cannot be looked into (Permission denied)")
    assert f"run chmod 700 {typed}, or set SEEONCE_HOME" in str(found.value)
    assert str(tmp_path) not in str(found.value)


def test_preparing_makes_it_private_and_marks_it_as_a_cache(tmp_path: Path) -> None:
    home = Home(tmp_path / "deep" / "home")
    home.prepare()
    home.prepare()
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    tag = home.path / "CACHEDIR.TAG"
    assert tag.read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
    assert [path.name for path in home.path.iterdir()] == ["CACHEDIR.TAG"]


def test_a_home_that_is_a_file_is_an_error_that_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(StoreError, match="check its permissions, or set SEEONCE_HOME to a folder"):
        Home(tmp_path / "home").prepare()


def test_a_private_home_outside_the_cloud_gives_no_warning(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert home.warnings() == []
    home.prepare()
    assert home.warnings() == []


@pytest.mark.parametrize("mode", [0o750, 0o704, 0o777])
def test_a_home_open_to_others_is_warned_of(tmp_path: Path, mode: int) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(mode)
    (warning,) = Home(tmp_path / "home").warnings()
    assert "chmod 700" in warning


def test_a_warning_names_a_command_that_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "the home").mkdir(mode=0o755)
    monkeypatch.setenv("SEEONCE_HOME", str(tmp_path / "the home"))
    assert Home.locate().warnings()[0].endswith('run chmod 700 "$SEEONCE_HOME"')
    monkeypatch.setenv("SEEONCE_HOME", str(tmp_path / "other"))
    assert Home(tmp_path / "the home").warnings()[0].endswith(f"run chmod 700 '{tmp_path / 'the home'}'")


@pytest.mark.parametrize(
    "folder",
    [
        "Dropbox",
        "Dropbox (Work)",
        "Library/Mobile Documents",
        "OneDrive - Company",
        "Google Drive",
        "Library/CloudStorage/x",
    ],
)
def test_a_synchronised_home_is_warned_of(tmp_path: Path, folder: str) -> None:
    (warning,) = Home(tmp_path / folder / "seeonce").warnings()
    assert "synchronises" in warning


def test_a_link_into_a_synchronised_folder_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "Dropbox").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "Dropbox")
    assert len(Home(tmp_path / "link" / "seeonce").warnings()) == 1
