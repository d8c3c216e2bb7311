"""A transform that was learned from few of the images, or classes, that a store holds is told of once."""

from __future__ import annotations

import numpy as np
import pytest

from clipretrieval import ClipRetrievalWarning, RetrievalClassifier, StoreCorruptedError
from clipretrieval.heads.whitening import Whitening
from clipretrieval.retrieval import transform_plan
from clipretrieval.stores import MemoryStore

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(300, 6)).astype(np.float32)
LABELS = (np.arange(300) % 10).tolist()


@pytest.fixture(autouse=True)
def unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start as a new process does."""
    monkeypatch.setattr(transform_plan, "_warned", set())


def filled(count: int, *, transform: object = "whiten", classes: int = 10) -> RetrievalClassifier:
    rows = [row for row in range(300) if LABELS[row] < classes][:count]
    made = RetrievalClassifier(store=MemoryStore(), transform=transform)
    return made.fit(ROWS[rows], [LABELS[row] for row in rows])


def learned_from(made: RetrievalClassifier) -> object:
    return made.store_.read_manifest()["transform"]["learned_from"]


@pytest.mark.parametrize("transform", ["whiten", Whitening(dim=3)])
def test_the_manifest_says_what_a_transform_was_learned_from(transform: object) -> None:
    """Records and classes at the end of the first fit, and after learning anew; changes leave it."""
    made = filled(30, transform=transform, classes=5)
    assert learned_from(made) == {"records": 30, "classes": 5}
    made.partial_fit(ROWS[:40:10], LABELS[:40:10])
    made.forget(label=4)
    assert learned_from(made) == {"records": 30, "classes": 5}
    count = made.store_.count()
    made.refit_transform()
    assert learned_from(made) == {"records": count, "classes": 4}
    if transform == "whiten":
        made.set_params(transform=None).refit_transform()
        assert "transform" not in made.store_.read_manifest()
        made.set_params(transform="whiten").refit_transform()
        assert learned_from(made) == {"records": count, "classes": 4}


def test_ten_times_the_images_are_told_of_once() -> None:
    """By the call that reaches them, which stores them all the same; learning anew ends it."""
    made = filled(30)
    made.partial_fit(ROWS[:299], LABELS[:299])
    with pytest.warns(ClipRetrievalWarning, match=r"learned from 30 images, and there are 300 now") as caught:
        made.partial_fit(ROWS, LABELS)
    assert "refit_transform()" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert made.store_.count() == 300
    made.partial_fit(ROWS + 1, LABELS)
    made.refit_transform()
    made.partial_fit(ROWS + 2, LABELS)


def test_new_classes_are_told_of() -> None:
    """More than a tenth more; by a fit that goes on, too. Classes without an image do not count."""
    ten = filled(100)
    ten.partial_fit(ROWS[:1] + 1, [10])
    with pytest.warns(ClipRetrievalWarning, match=r"100 images of 10 classes, and there are 102 of 12 now"):
        ten.fit(np.concatenate([ROWS[:100], ROWS[:2] + 1]), [*LABELS[:100], 10, 11], resume=True)
    listed = RetrievalClassifier(store=MemoryStore(), transform="whiten")
    listed.partial_fit(ROWS[:90:10], [*LABELS[:90:10][:8], 1], classes=range(10))
    assert learned_from(listed) == {"records": 9, "classes": 2}
    listed.partial_fit(ROWS[10:21:10], LABELS[10:21:10])
    with pytest.warns(ClipRetrievalWarning, match=r"9 images of 2 classes, and there are 10 of 3 now"):
        listed.partial_fit(ROWS[2:3], [2])


def test_another_map_is_told_of_too() -> None:
    """Once a process is once for each map."""
    for count in (20, 25):
        with pytest.warns(ClipRetrievalWarning, match=f"learned from {count} images"):
            filled(count).partial_fit(ROWS, LABELS)


def test_a_manifest_without_the_count_says_nothing() -> None:
    """What an earlier version wrote is used as it is, until the map is learned anew."""
    made = filled(20)
    manifest = made.store_.read_manifest()
    del manifest["transform"]["learned_from"]
    made.store_.write_manifest(manifest)
    made = RetrievalClassifier.from_store(made.store_)
    made.partial_fit(ROWS, LABELS)
    made.refit_transform()
    assert learned_from(made) == {"records": 300, "classes": 10}


@pytest.mark.parametrize(
    "wrong", [5, {}, {"records": 1}, {"records": 0, "classes": 1}, {"records": True, "classes": 1}, [1, 2]]
)
def test_a_count_that_is_none_is_refused(wrong: object) -> None:
    """As everything in the entry that no fit writes."""
    made = filled(20)
    manifest = made.store_.read_manifest()
    manifest["transform"]["learned_from"] = wrong
    made.store_.write_manifest(manifest)
    with pytest.raises(StoreCorruptedError, match="which no fit writes"):
        RetrievalClassifier.from_store(made.store_)
