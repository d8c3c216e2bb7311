"""Labels that come from the names of folders, and integers that stand for such names."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor

from clipretrieval import (
    ClipRetrievalWarning,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    ZeroShotClassifier,
    compare,
)
from clipretrieval.images import read_table, scan_folder
from clipretrieval.stores import FaissStore

CLASSES = ("café", "naïve", "plain")
ENCODER = StagedEncoder(stage="pixel")


def as_nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def draw(root: Path, classes: Any, seed: int) -> Path:
    """Four images of one color for each class, in folders of the given names."""
    rng = np.random.default_rng(seed)
    for name in classes:
        folder = root / name
        folder.mkdir(parents=True)
        color = CLASSES.index(unicodedata.normalize("NFC", name))
        for number in range(4):
            pixels = rng.integers(1, 60, (8, 8, 3), dtype=np.uint8)
            pixels[..., color] += 150
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture
def composed(tmp_path: Path) -> Path:
    return draw(tmp_path / "composed", CLASSES, 0)


@pytest.fixture
def decomposed(tmp_path: Path) -> Path:
    root = draw(tmp_path / "decomposed", map(as_nfd, CLASSES), 1)
    if {path.name for path in root.iterdir()} == set(CLASSES):
        pytest.skip("this file system has one form of names")
    return root


@pytest.fixture
def old(decomposed: Path) -> RetrievalClassifier:
    """A classifier whose classes have decomposed letters, as folders on some systems gave them before."""
    files = sorted(decomposed.glob("*/*.png"))
    return RetrievalClassifier(ENCODER, "memory").fit(files, [file.parent.name for file in files])


def test_one_form_in_folders(composed: Path, decomposed: Path) -> None:
    """A class is the same, however its folder's letters are composed; paths stay as they are."""
    found = scan_folder(decomposed)
    assert found.classes == CLASSES
    assert [path.parent.name for path in found.paths[::4]] == [as_nfd(name) for name in CLASSES]
    for train, test in ((composed, decomposed), (decomposed, composed)):
        made = RetrievalClassifier(ENCODER, "memory").fit(train)
        assert made.classes_.tolist() == list(CLASSES)
        assert made.score(test) == 1.0
        made.partial_fit(test)
        assert made.classes_.tolist() == list(CLASSES)
        assert made.store_.count() == 24
        assert Path(made.explain(test)[0].neighbors[0].source or "").parent.parent == test


def test_both_forms_in_one_folder_are_one_class(composed: Path, decomposed: Path) -> None:
    """Folders of one tree whose names differ in their form alone make one class of all their images."""
    for folder in list(decomposed.iterdir()):
        if folder.name != "plain":
            folder.rename(composed / folder.name)
    found = scan_folder(composed)
    assert found.classes == CLASSES
    assert [found.labels.count(name) for name in CLASSES] == [8, 8, 4]
    assert len({path.parent for path in found.paths}) == 5


def test_stored_classes_keep_their_form(old: RetrievalClassifier, composed: Path, decomposed: Path) -> None:
    """A store that was filled with decomposed names matches folders of either form, and gains no class."""
    classes = sorted(map(as_nfd, CLASSES))
    assert old.classes_.tolist() == classes
    assert old.score(composed) == 1.0
    with pytest.warns(ClipRetrievalWarning, match="12 of the 12 images are stored"):
        assert old.score(decomposed) == 1.0
    assert old.sweep(composed, k=1, validation="all").rows[0]["accuracy"] == 1.0
    old.partial_fit(composed)
    assert old.classes_.tolist() == classes
    old.partial_fit(decomposed)
    assert (old.fit_report_.already_there, old.fit_report_.relabelled) == (12, 0)
    assert len(old.forget(label="café")) == 8


def test_labels_of_a_csv_file(composed: Path, decomposed: Path, tmp_path: Path) -> None:
    """Names in a CSV file are those of folders, whatever form both have."""
    table = tmp_path / "test.csv"
    rows = [f"{file},{file.parent.name}" for file in sorted(decomposed.glob("*/*.png"))]
    table.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    assert read_table(table).classes == CLASSES
    made = RetrievalClassifier(ENCODER, "memory").fit(composed)
    assert made.score(table) == 1.0
    made.partial_fit(table)
    assert made.classes_.tolist() == list(CLASSES)


def test_given_labels_are_kept_and_compared(composed: Path) -> None:
    """Labels that are passed stay as they are where they are learnt, and are found where they are asked."""
    made = RetrievalClassifier(ENCODER, "memory").fit(composed)
    files = sorted(composed.glob("*/*.png"))
    with pytest.warns(ClipRetrievalWarning, match="are stored"):
        report = made.evaluate(files, [as_nfd(file.parent.name) for file in files])
    assert report.accuracy == 1.0
    assert report.classes.tolist() == list(CLASSES)
    with pytest.warns(ClipRetrievalWarning, match="Unicode normalization alone"):
        made.fit(files[:4], ["café"] * 2 + [as_nfd("café")] * 2, overwrite=True)
    assert len(made.classes_) == 2


def test_comparison_and_prompts(tiny_model: str, composed: Path, decomposed: Path) -> None:
    """The baseline's classes are those of the folders, in whatever form either of them has."""
    encoder = StagedEncoder(tiny_model, precision="fp32")
    zero_shot = ZeroShotClassifier(encoder, [as_nfd(name) for name in CLASSES])
    assert set(zero_shot.evaluate(composed).y_true.tolist()) == set(zero_shot.classes_.tolist())
    report = compare(
        composed,
        decomposed,
        encoder=encoder,
        stages=("pixel",),
        stores=("memory",),
        zero_shot=True,
        timed_images=2,
        single_images=0,
        open_clip=False,
    )
    assert report.rows[-1].report.accuracy == 1.0
    assert report.rows[0].report.classes.tolist() == list(CLASSES)


def test_comparison_goes_on_with_stored_names(tmp_path: Path, composed: Path, decomposed: Path) -> None:
    """An index that was begun with decomposed names is finished with those."""
    files = sorted(decomposed.glob("*/*.png"))
    options: dict[str, Any] = {
        "encoder": ENCODER,
        "stages": ("pixel",),
        "stores": {"kept": lambda stage: FaissStore(tmp_path / stage)},
        "timed_images": 2,
        "single_images": 0,
        "open_clip": False,
    }
    names = [file.parent.name for file in files]
    compare(files, composed, train_labels=names, **options)
    report = compare(decomposed, composed, **options, resume=True)
    assert report.rows[0].report.accuracy == 1.0
    with FaissStore(tmp_path / "pixel") as store:
        assert store.read_manifest()["classes"] == sorted(map(as_nfd, CLASSES))


def test_command_finds_a_class_in_either_form(
    command: Any, composed: Path, decomposed: Path, tmp_path: Path
) -> None:
    """Evaluating, adding and forgetting by name take both forms."""
    kept = tmp_path / "kept"
    assert command("index", composed, kept, "--stage", "pixel")[0] == 0
    status, out, _ = command("evaluate", "--classifier", kept, "--test", decomposed)
    assert (status, out[:16]) == (0, "accuracy 100.00%")
    status, out, _ = command("index", decomposed, kept, "--add")
    assert (status, "3 classes (café, naïve, plain)" in out) == (0, True)
    status, out, _ = command("forget", kept, "--label", as_nfd("café"))
    assert (status, out[:18]) == (0, "8 images forgotten")
    assert command("forget", kept, "--label", as_nfd("café"))[0] == 2


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(data, range(len(data)))])
def test_integers_of_a_dataset_that_lacks_a_class(composed: Path, tmp_path: Path, wrap: Any) -> None:
    """Datasets number the classes that they have, so one with other classes is refused and not mismatched."""
    test = draw(tmp_path / "test", CLASSES[1:], 2)
    made = RetrievalClassifier(ENCODER, "memory").fit(wrap(ImageFolder(composed)))
    assert made.classes_.tolist() == [0, 1, 2]
    asked = wrap(ImageFolder(test))
    for call in (made.evaluate, made.score, made.partial_fit, lambda X: made.sweep(X, k=1)):
        with pytest.raises(
            InvalidInputError, match="the label 0 is the class 'naïve' in this dataset and was"
        ):
            call(asked)
    assert made.predict(asked).tolist() == [1] * 4 + [2] * 4
    assert made.score(wrap(ImageFolder(draw(tmp_path / "whole", CLASSES, 3)))) == 1.0
    assert made.score(wrap(ImageFolder(draw(tmp_path / "fewer", CLASSES[:2], 3)))) == 1.0
    with pytest.raises(InvalidInputError, match="the label 0 is the class"):
        compare(wrap(ImageFolder(composed)), asked, encoder=ENCODER, stages=("pixel",))
    by_name = RetrievalClassifier(ENCODER, "memory").fit(composed)
    assert by_name.score(test) == 1.0


def test_integers_of_a_loader(composed: Path, tmp_path: Path) -> None:
    """A DataLoader has the classes of its dataset, unless that changes their numbers itself."""
    test = draw(tmp_path / "test", CLASSES[1:], 2)

    def loader(root: Path, **options: Any) -> Any:
        return DataLoader(ImageFolder(root, PILToTensor(), **options), batch_size=5)

    made = RetrievalClassifier(ENCODER, "memory").fit(loader(composed))
    with pytest.raises(InvalidInputError, match="the label 0 is the class"):
        made.score(loader(test))
    assert made.score(loader(test, target_transform=lambda number: number + 1)) == 1.0
    assert torch.is_tensor(next(iter(loader(test)))[0])


@pytest.mark.filterwarnings("error")
def test_one_image_of_each_class_is_no_regression() -> None:
    """Nothing is said about the number of classes, however few vectors there are of each."""
    rows = np.random.default_rng(0).normal(size=(60, 4))
    for labels in (range(60), [f"class {number}" for number in range(60)], np.arange(60.0)):
        made = RetrievalClassifier(store="memory").fit(rows, labels)
        assert made.score(rows + 0.001, labels) == 1.0
        made.partial_fit(rows + 9, labels)
        made.sweep(rows + 0.001, labels, k=1)
    with pytest.raises(InvalidInputError, match="Unknown label type"):
        RetrievalClassifier(store="memory").fit(rows, rows[:, 0])
    with pytest.raises(InvalidInputError, match="1d array"):
        RetrievalClassifier(store="memory").fit(rows, rows)
