"""The pictures that the package draws: decided by kind and seed, told truly by their captions."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipretrieval import InvalidInputError
from clipretrieval.demo import (
    COLOURS,
    KINDS,
    TEXTURES,
    TRAINED_KINDS,
    UNSEEN_KINDS,
    Scene,
    draw,
    draw_many,
    render,
    sample_scene,
    sample_scenes,
    write_folders,
)
from clipretrieval.demo.kinds import outline

KIND = st.sampled_from(KINDS)
SEED = st.integers(0, 2**32)

CLEAN = Scene(
    kind="star",
    colour="yellow",
    backdrop="blue",
    texture="plain",
    backdrop_texture="plain",
    x=0.5,
    y=0.5,
    radius=0.4,
    angle=0.0,
    mirrored=False,
    clutter=0,
    occluders=0,
    noise=0.0,
    detail=0,
)


def pixels(image: Image.Image) -> np.ndarray:
    """Return a picture's values as int, shape (height, width, 3)."""
    return np.asarray(image).astype(int)


def shown(kind: str, detail: int) -> np.ndarray:
    """Where a thing lies in a picture without anything else, as a mask of shape (64, 64)."""
    picture = pixels(render(Scene(**{**vars(CLEAN), "kind": kind, "detail": detail})))
    return np.abs(picture - picture[0, 0]).sum(axis=2) > 60


@given(kind=KIND, seed=SEED, size=st.sampled_from([16, 33, 64, 100]))
def test_a_kind_and_a_seed_decide_a_picture(kind: str, seed: int, size: int) -> None:
    """The same call gives the same RGB picture of the asked size, and another seed another one."""
    first = draw(kind, seed, size)
    assert first.mode == "RGB"
    assert first.size == (size, size)
    assert first.tobytes() == draw(kind, seed, size).tobytes()
    assert first.tobytes() != draw(kind, seed + 1, size).tobytes()


def test_a_generator_gives_one_picture_after_another() -> None:
    """A generator goes on from where it is, and starts like the seed that it was made from."""
    rng = np.random.default_rng(3)
    first, second = draw("fish", rng), draw("fish", rng)
    assert first.tobytes() == draw("fish", 3).tobytes()
    assert first.tobytes() != second.tobytes()


def test_the_kinds_are_ten_of_which_two_are_kept_from_training() -> None:
    """Trained and unseen kinds make up all ten, without overlap."""
    assert len(set(KINDS)) == 10
    assert len(UNSEEN_KINDS) == 2
    assert sorted(TRAINED_KINDS + UNSEEN_KINDS) == sorted(KINDS)


def test_every_kind_has_a_shape_of_its_own() -> None:
    """Laid over each other, two things of one kind cover each other better than two of different kinds."""
    masks = {kind: [shown(kind, detail) for detail in range(12)] for kind in KINDS}

    def overlap(first: np.ndarray, second: np.ndarray) -> float:
        return float((first & second).sum() / (first | second).sum())

    within = {kind: np.mean([overlap(a, b) for a, b in combinations(masks[kind], 2)]) for kind in KINDS}
    for first, second in combinations(KINDS, 2):
        between = np.mean([overlap(a, b) for a in masks[first] for b in masks[second]])
        assert between < max(within[first], within[second]), (first, second)


@given(kind=KIND, seed=SEED)
def test_things_fill_their_radius(kind: str, seed: int) -> None:
    """Every thing reaches from -1 to 1 within a fifth, on its longer side, whatever its proportions."""
    points = np.concatenate([part.points for part in outline(kind, np.random.default_rng(seed))])
    assert np.abs(points).max() == pytest.approx(1.0, abs=0.2)


def test_a_scene_is_drawn_as_it_says() -> None:
    """A plain yellow star on blue is yellow in its middle, pale blue around it, and of its radius."""
    picture = pixels(render(CLEAN))
    red, green, blue = picture[32, 32]
    assert min(red, green) > blue + 60
    for corner in (picture[0, 0], picture[0, -1], picture[-1, 0], picture[-1, -1]):
        assert corner[2] > max(corner[0], corner[1]) + 30
        assert corner.min() > 125
    rows = np.flatnonzero(shown("star", 0).any(axis=1))
    assert rows.max() - rows.min() == pytest.approx(0.8 * 64, abs=12)


@pytest.mark.parametrize(
    ("change", "least"),
    [
        ({"x": 0.3}, 100),
        ({"angle": 0.6}, 40),
        ({"radius": 0.25}, 100),
        ({"colour": "red"}, 300),
        ({"texture": "striped"}, 100),
        ({"backdrop_texture": "chequered"}, 300),
        ({"clutter": 6}, 40),
        ({"occluders": 2}, 60),
        ({"noise": 15.0}, 300),
    ],
)
def test_each_difficulty_changes_the_picture(change: dict[str, object], least: int) -> None:
    """Place, turn, size, colour, texture, clutter, bars and noise are each to be seen in the pixels."""
    before, after = pixels(render(CLEAN)), pixels(render(Scene(**{**vars(CLEAN), **change})))
    assert (np.abs(after - before).sum(axis=2) > 20).sum() >= least


def test_captions_tell_what_is_drawn() -> None:
    """The captions name kind, size, colours and textures, with the article that English wants."""
    orange = Scene(**{**vars(CLEAN), "colour": "orange", "texture": "dotted", "radius": 0.3})
    assert orange.captions() == [
        "a star",
        "a small star",
        "an orange star",
        "a small orange star",
        "an orange star on a blue background",
        "a dotted star",
        "a star on a plain background",
        "a dotted orange star on a plain blue background",
    ]


@given(kind=KIND, seed=SEED)
def test_scenes_stay_within_their_bounds(kind: str, seed: int) -> None:
    """Whatever the seed, a scene's names are known ones, its two colours differ, and its numbers fit."""
    scene = sample_scene(kind, np.random.default_rng(seed))
    assert scene.kind == kind
    assert {scene.colour, scene.backdrop} <= set(COLOURS)
    assert scene.colour != scene.backdrop
    assert {scene.texture, scene.backdrop_texture} <= set(TEXTURES)
    assert 0.32 <= scene.radius <= 0.45
    assert 0.28 <= min(scene.x, scene.y) <= max(scene.x, scene.y) <= 0.72
    assert abs(scene.angle) <= 0.4
    assert all(kind in caption for caption in scene.captions())


def test_scenes_depend_on_their_number_alone() -> None:
    """Fewer kinds, or a later start, give the same scenes of the kinds and numbers that are left."""
    every = list(sample_scenes(3, seed=5))
    assert [scene.kind for scene in every] == list(KINDS) * 3
    assert list(sample_scenes(1, seed=5, first=2)) == every[20:]
    stars = [scene for scene in every if scene.kind == "star"]
    assert list(sample_scenes(3, seed=5, kinds=["star"])) == stars
    assert not set(every) & set(sample_scenes(3, seed=6))


def test_draw_many_draws_the_scenes() -> None:
    """Pictures and labels are those of `sample_scenes`, in its order."""
    images, labels = draw_many(2, seed=1, kinds=("key", "mug"), size=32)
    assert labels == ["key", "mug", "key", "mug"]
    scenes = sample_scenes(2, seed=1, kinds=("key", "mug"))
    assert [image.tobytes() for image in images] == [render(scene, 32).tobytes() for scene in scenes]


@pytest.mark.parametrize(("extension", "form"), [("png", "PNG"), ("jpg", "JPEG")])
def test_folders_hold_each_kind_apart(tmp_path: Path, extension: str, form: str) -> None:
    """Train and test folders hold the asked number of each kind, and no picture twice."""
    out = write_folders(tmp_path / "a" / "out", train=3, test=2, seed=4, extension=extension)
    assert sorted(path.name for path in out.iterdir()) == ["pictures.json", "test", "train"]
    for part, count in (("train", 3), ("test", 2)):
        assert sorted(path.name for path in (out / part).iterdir()) == list(KINDS)
        assert all(len(list(folder.iterdir())) == count for folder in (out / part).iterdir())
    files = list(out.rglob(f"*.{extension}"))
    assert len({path.read_bytes() for path in files}) == 50
    with Image.open(files[0]) as picture:
        assert (picture.format, picture.mode, picture.size) == (form, "RGB", (64, 64))


def test_png_folders_hold_the_very_pictures(tmp_path: Path) -> None:
    """What is read back is what `draw_many` gives for the same seed: the test part follows the train part."""
    out = write_folders(tmp_path / "out", train=2, test=1, seed=9, kinds=["boat"])
    images, _ = draw_many(3, seed=9, kinds=["boat"])
    files = [*sorted((out / "train/boat").iterdir()), *sorted((out / "test/boat").iterdir())]
    for file, image in zip(files, images, strict=True):
        with Image.open(file) as read:
            assert read.tobytes() == image.tobytes()


def test_the_same_folders_are_used_again(tmp_path: Path) -> None:
    """A second call with the same settings leaves the folder as it is; other settings are refused."""
    out = write_folders(tmp_path / "out", train=1, test=1, seed=0)
    (out / "train/star/00000.png").write_bytes(b"kept")
    assert write_folders(out, train=1, test=1, seed=0) == out
    assert (out / "train/star/00000.png").read_bytes() == b"kept"
    with pytest.raises(InvalidInputError, match="holds something else"):
        write_folders(out, train=1, test=1, seed=1)
    assert json.loads((out / "pictures.json").read_text())["seed"] == 0


def test_other_contents_are_left_alone(tmp_path: Path) -> None:
    """A folder or a file of someone else's is neither overwritten nor added to."""
    (tmp_path / "mine.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(InvalidInputError, match="holds something else"):
            write_folders(taken)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    """Unknown kinds and numbers out of range raise at the call, and nothing is written."""
    with pytest.raises(InvalidInputError, match="kind must be one of 'boat', "):
        draw("dragon")
    with pytest.raises(InvalidInputError, match="at least 16"):
        draw("star", size=15)
    with pytest.raises(InvalidInputError, match="seed must be a whole number, at least 0; got -1"):
        draw("star", seed=-1)
    with pytest.raises(InvalidInputError, match="at least 1"):
        sample_scenes(0, seed=0)
    with pytest.raises(InvalidInputError, match="kinds must be one of 'boat', "):
        sample_scenes(1, seed=0, kinds=["dragon"])
    with pytest.raises(InvalidInputError, match="one of 'png', 'jpg'"):
        write_folders(tmp_path / "out", extension="gif")
    with pytest.raises(InvalidInputError, match="at least 1"):
        write_folders(tmp_path / "out", test=0)
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """Seeds and sizes may be NumPy's integers, and mean the same folder as Python's."""
    kinds = [np.str_(kind) for kind in KINDS[:2]]
    whole = {name: np.int64(value) for name, value in {"train": 2, "test": 1, "seed": 3, "size": 16}.items()}
    out = write_folders(tmp_path / "out", kinds=kinds, **whole)
    assert write_folders(out, train=2, test=1, seed=3, size=16, kinds=KINDS[:2]) == out
