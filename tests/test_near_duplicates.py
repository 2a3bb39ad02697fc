"""Near duplicates: one entry for frames that look alike, every frame named, none decoded in vain."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Run
from escribano_samples import add_frame, new_database
from PIL import Image, ImageDraw
from screens import noise
from store_samples import frame, manifest

from cache import pixel_index
from cache.base.home import Home
from cache.manifest import Manifest, list_manifests, read_manifest
from sources import pixels
from sources.near_duplicates import perceptual_hash


@pytest.fixture(autouse=True)
def _files_are_remembered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_index, "RACY_NS", 0)


def _screen(seed: int, changed_pixels: int = 0) -> Image.Image:
    """Draw boxes that no other seed draws, with a little that changed in a corner."""
    draw_from = random.Random(seed)
    image = Image.new("RGB", (96, 64), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = draw_from.randrange(80), draw_from.randrange(50)
        colour = tuple(draw_from.randrange(200) for _ in range(3))
        pen.rectangle((x, y, x + draw_from.randrange(8, 60), y + draw_from.randrange(8, 40)), fill=colour)
    for position in range(changed_pixels):
        image.putpixel((position, 0), (position * 40 % 256, 0, 0))
    return image


@pytest.fixture
def screens(tmp_path: Path) -> Path:
    """A recording: one screen, twice a little changed, another, the first again, and the other again."""
    folder = tmp_path / "screens"
    folder.mkdir()
    shown = [_screen(1), _screen(1, 1), _screen(1, 2), _screen(2), _screen(1), _screen(1, 3)]
    for index, image in enumerate(shown):
        image.save(folder / f"{index}_{index * 10}.0s.png")
    return folder


def _manifest(home: Path) -> Manifest:
    return read_manifest(list_manifests(Home(home))[0].path)


def _neighbours(home: Path) -> list[int | None]:
    return [frame.neighbour for frame in _manifest(home).frames]


def test_frames_that_look_like_the_last_kept_one_use_its_entry(
    run: Run, home: Path, plain: Path, screens: Path
) -> None:
    ended = run("seeonce encode --near-duplicates 4 --json --model", plain, screens)
    assert (ended.code, ended.json["num_encoded"], ended.json["num_new"], ended.json["num_near"]) == (
        0,
        6,
        2,
        3,
    )
    assert _neighbours(home) == [None, 0, 0, None, None, 4]
    frames = _manifest(home).frames
    assert [frame.key == frames[0].key for frame in frames] == [True, True, True, False, True, True]
    assert [Path(frame.source).name[0] for frame in frames] == list("012345")


def test_it_is_off_unless_asked_for(run: Run, home: Path, plain: Path, screens: Path) -> None:
    assert run("seeonce encode --json --model", plain, screens).json["num_new"] == 5
    assert _neighbours(home) == [None] * 6


def test_no_picture_is_decoded_twice_nor_a_near_one_in_vain(
    run: Run, home: Path, plain: Path, screens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("seeonce encode --near-duplicates 4 --model", plain, screens)
    first = _manifest(home).frames
    monkeypatch.setattr(pixels, "read_image", lambda path: pytest.fail(f"decoded {path}"))
    ended = run("seeonce encode --near-duplicates 4 --json --model", plain, screens)
    assert (ended.code, ended.json["num_new"], ended.json["num_near"]) == (0, 0, 3)
    assert "nothing to do" in ended.err
    assert _manifest(home).frames == first


def test_what_is_remembered_of_a_run_without_changes_nothing_of_one_with(
    run: Run, home: Path, plain: Path, screens: Path
) -> None:
    run("seeonce encode --model", plain, screens)
    run("seeonce encode --near-duplicates 4 --model", plain, screens)
    assert _neighbours(home) == [None, 0, 0, None, None, 4]


def test_results_cover_every_frame_and_the_verifier_is_content(
    run: Run, home: Path, plain: Path, screens: Path
) -> None:
    assert run("seeonce encode --near-duplicates 4 --model", plain, screens).code == 0
    ended = run("verify-cache --sample all --level embeddings --model", plain, screens)
    assert ended.code == 0, ended.out
    assert "3 more frames use a near duplicate's entry" in ended.out
    assert (
        run("seeonce describe --json --max-tokens 2 --model", plain, screens).json["totals"]["num_results"]
        == 6
    )


def test_the_verifier_objects_when_the_neighbours_picture_changed(
    run: Run, home: Path, plain: Path, screens: Path
) -> None:
    run("seeonce encode --near-duplicates 4 --model", plain, screens)
    noise(9).save(screens / "0_0.0s.png")
    assert run("verify-cache --level embeddings --sample all --model", plain, screens).code == 1


def test_a_kept_frame_that_cannot_be_read_costs_itself_alone(
    run: Run, home: Path, plain: Path, screens: Path
) -> None:
    run("seeonce encode --near-duplicates 4 --model", plain, screens)  # now all looks are remembered
    (screens / "0_0.0s.png").write_bytes(b"no picture")
    ended = run("seeonce encode --near-duplicates 4 --json --model", plain, screens)
    assert (ended.code, ended.json["num_encoded"]) == (3, 5)
    assert _neighbours(home) == [None, 1, None, None, 4]


def test_escribanos_hashes_are_taken_where_all_frames_have_one_and_nothing_near_is_decoded(
    run: Run, home: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = new_database(tmp_path / "escribano.db")
    monkeypatch.setenv("ESCRIBANO_DB", str(database))
    for index, phash in enumerate(["f0", "f1", "ffff", "fffe"]):  # says the database, whatever they show
        noise(index).save(tmp_path / f"{index}.png")
        add_frame(database, f"f{index}", 1_795_262_400.0 + index, str(tmp_path / f"{index}.png"), phash)
    (tmp_path / "1.png").write_bytes(b"never looked at")
    ended = run("seeonce encode --near-duplicates 1 --json --model", plain)
    assert (ended.code, ended.json["num_new"], ended.json["num_near"]) == (0, 2, 2)
    assert _neighbours(home) == [None, 0, None, 2]
    noise(1).save(tmp_path / "1.png")
    add_frame(database, "f4", 1_795_262_404.0, str(tmp_path / "0.png"), "not a hash")
    ended = run("seeonce encode --near-duplicates 1 --json --model", plain)
    assert (ended.json["num_near"], _neighbours(home)) == (0, [None] * 5)


@pytest.mark.parametrize("distance", ["-1", "65"])
def test_what_is_no_distance_is_refused(distance: str, run: Run, home: Path, screens: Path) -> None:
    ended = run(f"seeonce encode --near-duplicates={distance}", screens)
    assert f"--near-duplicates is {distance}; expected a number of bits from 0 to 64" in ended.error
    assert not home.exists()


def test_pictures_that_look_alike_are_nearer_than_others() -> None:
    one, changed, other = (perceptual_hash(image) for image in (_screen(1), _screen(1, 3), _screen(2)))
    assert (one ^ changed).bit_count() <= 4 < (one ^ other).bit_count()


@pytest.mark.parametrize("neighbour", [0, 1, 2, 7])
def test_a_manifest_whose_neighbours_do_not_fit_is_not_sound(neighbour: int) -> None:
    made = manifest(3)
    frames = (
        made.frames[0],
        replace(frame(1, picture=0), neighbour=0),
        replace(frame(2), neighbour=neighbour),
    )
    problems = replace(made, frames=frames).problems()
    assert len(problems) == 1
    assert f"frame 2: no earlier frame {neighbour} has its entry" in problems[0]
