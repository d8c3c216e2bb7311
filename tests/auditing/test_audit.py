"""An audit's findings, by value, through real stores and files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from clipretrieval import (
    AuditReport,
    InvalidInputError,
    NotFittedError,
    RetrievalClassifier,
    StoreLockedError,
    UnsupportedOperationError,
    audit,
)
from clipretrieval.auditing import KINDS, Finding
from clipretrieval.stores import MemoryStore

CLASSES, DIM = 4, 16


@pytest.fixture(scope="module")
def clusters() -> tuple[Any, Any, Any]:
    """200 vectors of four classes that lie apart, their true labels, and labels of which ten are wrong."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(CLASSES), 50)
    means = 3 * rng.standard_normal((CLASSES, DIM))
    vectors = (means[truth] + rng.standard_normal((len(truth), DIM))).astype(np.float32)
    given = truth.copy()
    given[::20] = (given[::20] + 1 + rng.integers(0, CLASSES - 1, 10)) % CLASSES
    return vectors, truth, given


def content(vector: Any) -> str:
    """The id of a vector that is stored without an encoder."""
    return hashlib.blake2b(vector.tobytes(), digest_size=16).hexdigest()


def untimed(report: AuditReport) -> dict[str, Any]:
    """A report without what a second run need not repeat."""
    return {key: value for key, value in report.to_dict().items() if key not in ("seconds", "fingerprint")}


def test_wrong_labels_are_listed_with_those_that_were_meant(clusters: Any) -> None:
    """Just the flipped labels are found, each with the true one and neighbors of that class."""
    vectors, truth, given = clusters
    report = audit(vectors, given)
    rows = {content(vector): row for row, vector in enumerate(vectors)}
    found = report.of("label")
    assert {rows[each.id] for each in found} == set(range(0, 200, 20))
    assert [each.suggested for each in found] == [truth[rows[each.id]] for each in found]
    assert [each.label for each in found] == [given[rows[each.id]] for each in found]
    assert all(each.probability > 0.9 for each in found)
    assert all([near.label for near in each.neighbors].count(each.suggested) >= 3 for each in found)
    distances = [[near.distance for near in each.neighbors] for each in found]
    assert all(each == sorted(each) and len(each) == 5 for each in distances)
    estimate = report.estimates["label"]
    assert estimate.low <= 10 <= estimate.high
    assert (estimate.checked, estimate.listed) == (200, 10)
    assert audit(vectors, truth).of("label") == ()


@pytest.mark.parametrize("store", ["memory", "faiss", "chroma"])
@pytest.mark.filterwarnings("ignore:ChromaStore cannot keep class statistics")
def test_a_classifier_is_audited_by_what_its_store_holds(store: str, clusters: Any) -> None:
    """Every store that lists its records gives the findings of the vectors themselves."""
    vectors, _, given = clusters
    names = np.array(["ant", "bee", "cat 'x'", "dog\t\n"])
    classifier = RetrievalClassifier(store=store).fit(vectors, names[given])
    report = audit(classifier)
    expected = audit(vectors, names[given])
    assert [(each.id, each.label, each.suggested) for each in report.of("label")] == [
        (each.id, each.label, each.suggested) for each in expected.of("label")
    ]
    assert report.counts == expected.counts
    assert report.classes == tuple(names.tolist())
    assert report.fingerprint["contents"] == expected.fingerprint["contents"]
    assert report.fingerprint["count"] == 200


@pytest.mark.usefixtures("few_features")
@pytest.mark.parametrize("head", ["discriminant", "ridge", "fused", "quadratic"])
def test_labels_are_judged_by_the_classifiers_own_head(head: str, clusters: Any) -> None:
    """A head that can leave records out judges; another one leaves it to the discriminant."""
    vectors, _, given = clusters
    classifier = RetrievalClassifier(store="memory", head=head).fit(vectors, given)
    report = audit(classifier, parts=["label"])
    rows = {name: row for row, name in enumerate(map(content, vectors))}
    assert report.setting["head"] == ("discriminant" if head == "quadratic" else head)
    if head != "fused":  # which stores whitened vectors; their ids are those of the given ones
        assert {rows[each.id] for each in report.of("label")} == set(range(0, 200, 20))
    assert set(report.counts) == {"label"}


def test_equal_vectors_are_grouped_across_classes_and_sets(clusters: Any) -> None:
    """Equal vectors are one group each, told apart by ids; a group with test images is a leak."""
    vectors, truth, _ = clusters
    given = np.concatenate([vectors, vectors[:3], vectors[:1]])
    labels = np.concatenate([truth, [0, 0, 3], [0]])
    tested = np.concatenate([vectors[100:102], vectors[110:112] + 5])
    report = audit(given, labels, X_test=tested, y_test=[2, 2, 0, 0])
    groups = [[each.id for each in group] for group in report.groups("duplicate")]
    first, second, third = map(content, vectors[:3])
    assert sorted(groups) == sorted(
        [[first, f"{first}-2", f"{first}-3"], [second, f"{second}-2"], [third, f"{third}-2"]]
    )
    notes = {each.id: each.note for each in report.of("duplicate")}
    assert notes[first] == "equal images"
    assert notes[third] == notes[f"{third}-2"] == "equal images, under several labels"
    leaks = report.groups("leak")
    assert [[(each.id, each.where, each.label) for each in group] for group in leaks] == [
        [(content(vectors[row]), "train", 2), (content(vectors[row]), "test", 2)]
        for row in sorted((100, 101), key=lambda row: content(vectors[row]))
    ]
    assert all(each.score == 1 for each in (*report.of("duplicate"), *report.of("leak")))
    assert report.counts["leak"] == 4


def test_what_lies_far_from_all_is_an_outlier(clusters: Any) -> None:
    """A vector far away is the only outlier, before and after more of the same kind are not."""
    vectors, truth, _ = clusters
    far = np.full((1, DIM), 30, dtype=np.float32)
    found = audit(np.concatenate([vectors, far]), [*truth, 0], parts=["outlier"]).of("outlier")
    assert [each.id for each in found] == [content(far[0])]
    assert found[0].score > 4
    assert audit(vectors, truth).of("outlier") == ()


def brute_force(near: Any, matches: Any, k: int, n: int) -> Any:
    """Shapley values of votes by their definition, over all orders of few records."""
    from itertools import permutations
    from math import factorial

    values = np.zeros(n)
    rank = {row: place for place, row in enumerate(near)}
    for order in permutations(range(n)):
        before: list[int] = []
        last = 0.0
        for row in order:
            before.append(row)
            nearest = sorted(before, key=rank.__getitem__)[:k]
            now = sum(matches[rank[each]] for each in nearest) / k
            values[row] += now - last
            last = now
    return values / factorial(n)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_shapley_values_are_those_of_the_definition(k: int) -> None:
    """The closed form gives the mean gain over all orders, also where there are fewer records than votes."""
    from clipretrieval.auditing.harm import shapley_values

    rng = np.random.default_rng(k)
    near = np.stack([rng.permutation(5) for _ in range(3)]).astype(np.int32)
    matches = rng.random((3, 5)) < 0.5
    expected = np.mean([brute_force(*pair, k, 5) for pair in zip(near, matches, strict=True)], axis=0)
    np.testing.assert_allclose(shapley_values(near, matches, k, 5), expected, atol=1e-12)


def test_stored_images_that_mislead_are_harmful(clusters: Any) -> None:
    """The wrongly labelled records nearest to test images are found, with the images that they mislead."""
    vectors, truth, given = clusters
    wrong = np.flatnonzero(given != truth)
    classifier = RetrievalClassifier(store="memory", k=1).fit(vectors, given)
    tested = vectors[wrong] + np.float32(0.01)
    report = audit(classifier, X_test=tested, y_test=truth[wrong], parts=["harm"])
    found = report.of("harm")
    assert {each.id for each in found} == {content(vectors[row]) for row in wrong}
    assert [[near.id for near in each.neighbors] for each in found] == [
        [content(tested[list(wrong).index(row)])]
        for row in [next(r for r in wrong if content(vectors[r]) == each.id) for each in found]
    ]
    assert all(near.where == "test" for each in found for near in each.neighbors)
    assert all(each.score > 0.4 for each in found)
    none = audit(classifier, X_test=tested, parts=["harm", "leak"])
    assert none.left_out["harm"] == "the test images have no labels"


def test_confused_classes_are_told_with_what_lies_between() -> None:
    """Of three classes the two that overlap are listed, and images between them are shown."""
    rng = np.random.default_rng(1)
    truth = np.repeat([0, 1, 2], 100)
    means = np.array([[0, 0], [1.5, 0], [20, 20]])
    vectors = (means[truth] + rng.standard_normal((300, 2))).astype(np.float32)
    report = audit(vectors, np.array(["left", "right", "far"])[truth], parts=["confusion"])
    (found,) = report.of("confusion")
    assert {found.label, found.suggested} == {"left", "right"}
    assert 0.1 < found.score < 0.4
    assert {near.label for near in found.neighbors} <= {"left", "right"}
    assert "are taken for" in found.note
    assert "them apart worse" in found.note


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of textured images with changed copies of some, and with bad files."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for name in ("red", "green"):
        (root / "train" / name).mkdir(parents=True)
    (root / "test" / "red").mkdir(parents=True)
    for number in range(24):
        noise = rng.integers(0, 255, (8, 8)).astype(np.uint8)
        grey = Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC)
        tint = "red" if number % 2 else "green"
        image = ImageOps.colorize(grey, "black", tint)
        image.save(root / "train" / tint / f"{number:02}.png")
        if number == 1:
            image.save(root / "train" / "red" / "jpeg.jpg", quality=40)
        if number == 3:
            ImageOps.mirror(image).save(root / "train" / "green" / "mirrored.png")
        if number == 5:
            image.resize((77, 77)).save(root / "test" / "red" / "smaller.png")
        if number == 7:
            image.crop((2, 2, 94, 94)).save(root / "test" / "red" / "cropped.png")
        if number == 9:
            (root / "train" / "red" / "copy.png").write_bytes(
                (root / "train" / "red" / "09.png").read_bytes()
            )
    Image.new("RGB", (40, 40), "red").save(root / "train" / "red" / "blank.png")
    Image.fromarray(rng.integers(0, 255, (6, 40, 3)).astype(np.uint8)).save(
        root / "train" / "red" / "tiny.png"
    )
    (root / "train" / "green" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return root


class Cells:
    """A user's own encoder: the image at 4 × 4 pixels."""

    dim = 48
    fingerprint = {"encoder": "Cells"}

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, images: Any) -> Any:
        self.encoded += len(images)
        small = [np.asarray(image.resize((4, 4))).ravel() for image in images]
        return np.stack(small).astype(np.float32) / 255


def names(findings: tuple[Finding, ...]) -> set[str]:
    """The files that findings are about, without their folders."""
    return {Path(str(each.source)).name for each in findings}


def test_changed_copies_and_bad_files_of_folders_are_found(pictures: Path) -> None:
    """Copies as JPEG, mirrored, smaller and cropped are grouped; what is broken, tiny or blank is named."""
    report = audit(pictures / "train", encoder=Cells(), X_test=pictures / "test")
    groups = sorted(sorted(names(group)) for group in report.groups("duplicate"))
    assert groups == [["01.png", "jpeg.jpg"], ["03.png", "mirrored.png"], ["09.png", "copy.png"]]
    leaks = sorted(sorted(names(group)) for group in report.groups("leak"))
    assert leaks == [["05.png", "smaller.png"], ["07.png", "cropped.png"]]
    notes = {Path(str(each.source)).name: each.note for each in report.of("duplicate")}
    assert notes["copy.png"] == "equal images"
    assert notes["mirrored.png"] == "nearly equal images, under several labels"
    assert names(report.of("tiny")) == {"tiny.png"}
    assert names(report.of("blank")) == {"blank.png"}
    (broken,) = report.of("broken")
    assert Path(str(broken.source)).name == "broken.png"
    assert "cannot decode" in broken.note
    assert (report.n_images, report.n_test, report.classes) == (29, 2, ("green", "red"))
    files = audit(pictures / "train", encoder=Cells(), parts=["broken", "tiny", "blank"])
    assert files.counts == {"broken": 1, "tiny": 1, "blank": 1}
    leaks_alone = audit(pictures / "train", encoder=Cells(), X_test=pictures / "test", parts=["leak"])
    assert leaks_alone.of("leak") == report.of("leak")


def test_a_run_goes_on_where_another_stopped(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a folder, nothing is encoded or looked up twice, also after an interrupt; the report is there."""
    from clipretrieval.auditing import evidence, subject

    monkeypatch.setattr(subject, "BLOCK", 8)
    first = Cells()
    calls: list[int] = []
    stops = [16]
    ask = evidence._Question.ask

    def interrupted(self: Any, rows: slice) -> Any:
        calls.append(rows.start)
        if stops == [rows.start]:
            stops.clear()
            raise KeyboardInterrupt
        return ask(self, rows)

    monkeypatch.setattr(evidence._Question, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        audit(pictures / "train", encoder=first, output=tmp_path)
    second = Cells()
    report = audit(pictures / "train", encoder=second, output=tmp_path)
    assert (first.encoded, second.encoded) == (29, 0)
    assert calls == [0, 8, 16, 16, 24]
    assert untimed(report) == untimed(audit(pictures / "train", encoder=Cells()))
    assert untimed(AuditReport.from_json(tmp_path / "audit.json")) == untimed(report)
    calls.clear()
    (tmp_path / "neighbors" / "mine").mkdir()
    damaged = sorted((tmp_path / "neighbors").glob("*/*.npz"))[1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    again = audit(pictures / "train", encoder=Cells(), output=tmp_path)
    assert calls == [8]
    calls.clear()
    assert audit(pictures / "train", encoder=Cells(), output=tmp_path, k=3).setting["k"] == 3
    assert calls == [0, 8, 16, 24]
    kept = {each.name for each in (tmp_path / "neighbors").iterdir()}
    assert len(kept) == 2
    assert "mine" in kept
    assert untimed(again) == untimed(report)


def test_a_folder_that_has_changed_is_audited_as_it_is_now(pictures: Path, tmp_path: Path) -> None:
    """Images that are gone are removed, those that moved get their new label, and a warning counts them."""
    import shutil

    folder = tmp_path / "images"
    shutil.copytree(pictures / "train", folder)
    audit(folder, encoder=Cells(), output=tmp_path / "kept")
    (folder / "red" / "copy.png").unlink()
    (folder / "red" / "tiny.png").rename(folder / "green" / "tiny.png")
    Image.new("RGB", (40, 40), "blue").save(folder / "red" / "new.png")
    encoder = Cells()
    with pytest.warns(match="1 are gone, 1 have another label or file, 1 are new"):
        report = audit(folder, encoder=encoder, output=tmp_path / "kept")
    assert encoder.encoded == 1
    assert untimed(report) == untimed(audit(folder, encoder=Cells()))


def test_a_classifiers_files_are_looked_at_where_vectors_are_near(pictures: Path) -> None:
    """Of a fitted classifier, files decide about near vectors; equal files are one record there."""
    classifier = RetrievalClassifier(Cells(), store="memory").fit(pictures / "train", on_error="skip")
    report = audit(classifier, X_test=pictures / "test")
    assert ["01.png", "jpeg.jpg"] in [sorted(names(group)) for group in report.groups("duplicate")]
    assert len(report.of("leak")) == 4
    assert report.left_out["blank"].startswith("files are looked at where a folder is audited")


class Unlisted:
    """A store that does what it must and nothing else."""

    def __init__(self) -> None:
        self._store = MemoryStore()

    def __getattr__(self, name: str) -> Any:
        if name in ("scan", "read_blob", "write_blob", "save", "refresh", "exclusive"):
            raise AttributeError(name)
        return getattr(self._store, name)


def test_a_store_that_cannot_list_its_records_leaves_parts_out(clusters: Any) -> None:
    """Leaks and harm are found by what lies near test images; the rest is left out, with the reason."""
    vectors, truth, given = clusters
    classifier = RetrievalClassifier(store=Unlisted(), k=1).fit(vectors, given)
    report = audit(classifier, X_test=vectors[::20], y_test=truth[::20])
    assert len(report.groups("leak")) == 10
    assert {each.id for each in report.of("harm")} == {content(vector) for vector in vectors[::20]}
    assert set(report.left_out) == set(KINDS) - {"leak", "harm"}
    assert report.left_out["label"] == "Unlisted cannot list what it holds (it has no scan method)"
    assert report.n_images == 200
    with pytest.raises(UnsupportedOperationError, match="confusion: Unlisted cannot list what it holds"):
        audit(classifier)


def test_small_and_degenerate_sets_are_audited() -> None:
    """One class, one image, fewer images than neighbors and equal vectors give what can be told."""
    one_class = audit([[0.0], [1.0], [2.0]], ["a", "a", "a"], k=50)
    assert one_class.left_out["label"] == "there is one class, and no other that could be meant"
    assert one_class.counts == {"duplicate": 0, "outlier": 0}
    with pytest.raises(UnsupportedOperationError, match="there is one image, which has nothing"):
        audit([[1.0, 2.0]], ["a"])
    leaked = audit([[1.0, 2.0]], ["a"], X_test=[[1.0, 2.0], [3.0, 4.0]], y_test=["a", "b"])
    assert [each.where for each in leaked.of("leak")] == ["train", "test"]
    equal = audit(np.zeros((30, 2)), [0] * 15 + [1] * 15, k=5)
    assert [len(group) for group in equal.groups("duplicate")] == [30]
    assert equal.of("outlier") == ()
    alone = audit([[0.0], [0.1], [0.2], [5.0]], ["a", "a", "a", "b"])
    assert alone.estimates["label"].checked == 3


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_every_metric_finds_what_is_wrong(metric: str, clusters: Any) -> None:
    """Wrong labels are those that l2 finds; no two that merely are the nearest of all are duplicates."""
    vectors, truth, given = clusters
    classifier = RetrievalClassifier(store="memory", metric=metric).fit(vectors, given)
    report = audit(classifier, X_test=vectors[:2], y_test=truth[:2])
    assert {each.id for each in report.of("label")} == {content(vector) for vector in vectors[::20]}
    assert report.of("duplicate") == ()
    assert {each.id for each in report.of("leak")} == {content(vector) for vector in vectors[:2]}


def test_findings_are_limited_and_groups_stay_whole(clusters: Any) -> None:
    """A limit bounds what is kept of each kind, never the counts, and cuts no group."""
    vectors, truth, given = clusters
    report = audit(np.concatenate([vectors, vectors[:30]]), [*given, *truth[:30]], limit=5)
    assert len(report.of("label")) == 5
    assert report.counts["duplicate"] == 60
    assert [len(group) for group in report.groups("duplicate")] == [2, 2]
    none = audit(np.concatenate([vectors, vectors[:30]]), [*given, *truth[:30]], limit=0)
    assert (none.findings, none.counts["duplicate"]) == ((), 60)


def test_progress_is_told_of_encoding_and_of_looking_up(clusters: Any) -> None:
    """Each phase counts up to all images."""
    vectors, truth, _ = clusters
    told: list[tuple[int, int | None]] = []
    audit(vectors, truth, progress=lambda done, total: told.append((done, total)))
    assert [each for each in told if each[0] == 200] == [(200, 200), (200, 200)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X": [[0.0]]}, "y to be passed"),
        ({"X": [[np.nan]], "y": [0]}, "contains NaN"),
        ({"X": [[0.0]], "y": [0], "parts": ["labels"]}, "parts must be one of 'label', 'duplicate'"),
        ({"X": [[0.0]], "y": [0], "parts": []}, "parts names nothing to look for"),
        ({"X": [[0.0]], "y": [0], "k": 0}, "k must be a whole number, at least 1"),
        ({"X": [[0.0]], "y": [0], "limit": -1}, "limit must be a whole number, at least 0"),
        ({"X": [[0.0]], "y": [0], "y_test": [0]}, "y_test is for X_test, which is missing"),
        ({"X": [[0.0], [1.0]], "y": [0]}, "there are 2 vectors and 1 labels"),
        ({"X": [[0.0], [1.0]], "y": [0, "a"]}, "labels must all be of one type"),
    ],
)
def test_what_cannot_be_audited_is_refused(arguments: Any, message: str) -> None:
    """The message names what is wrong."""
    with pytest.raises(InvalidInputError, match=message):
        audit(**arguments)


def test_classifiers_that_cannot_be_audited_are_refused(clusters: Any, tmp_path: Path) -> None:
    """Not fitted, given labels, or changed while the audit runs."""
    vectors, truth, _ = clusters
    with pytest.raises(NotFittedError):
        audit(RetrievalClassifier())
    classifier = RetrievalClassifier(store="memory").fit(vectors, truth)
    with pytest.raises(InvalidInputError, match="a classifier has its own labels and encoder"):
        audit(classifier, truth)

    def relabel(done: int, total: int | None) -> None:
        classifier.relabel([content(vector) for vector in vectors], [3] * 200)

    with pytest.raises(StoreLockedError, match="the store was changed while it was audited"):
        audit(classifier, progress=relabel)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match=r"the audit's folder .* cannot be made"):
        audit(vectors, truth, output=tmp_path / "file")


def test_test_labels_that_no_image_has_are_said(clusters: Any) -> None:
    """Labels of another type are refused, as evaluate does; of other classes, harm says for how many."""
    vectors, truth, given = clusters
    classifier = RetrievalClassifier(k=3).fit(vectors, given)
    tested = vectors[:4] + np.float32(0.01)
    with pytest.raises(InvalidInputError, match="of the type str, but the classifier was fitted on int"):
        audit(classifier, X_test=tested, y_test=["0"] * 4, parts=["harm"])
    some = audit(classifier, X_test=tested, y_test=[*truth[:3], 99], parts=["harm"])
    why = "1 of 4 test images: their class is none of those that are audited"
    assert some.left_out == {"harm": f"for {why}"}
    assert "harm" in some.counts
    none = audit(classifier, X_test=tested, y_test=[99] * 4, parts=["harm", "leak"])
    assert none.left_out["harm"].startswith("all 4 test images: their class is none")
    assert "harm" not in none.counts


def test_a_classifier_is_said_to_hold_no_equal_files(clusters: Any) -> None:
    """Copies are stored once: only an audit of the folder, or of vectors, can find them."""
    vectors, truth, _ = clusters
    twice, labels = np.concatenate([vectors, vectors[:2]]), [*truth, *truth[:2]]
    stored = audit(RetrievalClassifier().fit(twice, labels), parts=["duplicate"])
    assert stored.counts == {"duplicate": 0}
    assert "audit the folder of the images" in stored.left_out["duplicate"]
    found = audit(twice, labels, parts=["duplicate"])
    assert (found.counts, found.left_out) == ({"duplicate": 4}, {})


def test_wrong_labels_are_doubted_where_the_head_knows_the_classes_badly(clusters: Any) -> None:
    """What cannot tell the classes takes its own mistakes for wrong labels."""
    vectors, truth, given = clusters
    clear = audit(vectors, given, parts=["label"])
    assert clear.cautions == {}
    assert clear.setting["held_out_accuracy"] == pytest.approx(0.95)
    noise = np.random.default_rng(1).normal(size=vectors.shape).astype(np.float32)
    unclear = audit(noise, truth, parts=["label"])
    assert unclear.setting["held_out_accuracy"] < 0.5
    assert "mostly not wrong labels" in unclear.cautions["label"]
    assert "caution: label: these are mostly not wrong labels" in str(unclear)
    assert "<strong>Caution:</strong> these are mostly not wrong labels" in unclear.to_html()
    assert AuditReport.from_dict(unclear.to_dict()).cautions == unclear.cautions


def test_kinds_with_one_reason_share_it() -> None:
    """A refusal tells each reason once."""
    with pytest.raises(UnsupportedOperationError) as caught:
        audit([[0.0]], ["a"])
    assert str(caught.value).count("no test images were given") == 1
    assert "leak, harm: no test images were given" in str(caught.value)
