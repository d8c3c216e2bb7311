"""Explanations: who voted, how much each vote counted, and how that is shown."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from clipretrieval import (
    ClipRetrievalWarning,
    Explanation,
    ImageDecodeError,
    InvalidInputError,
    NotFittedError,
    RetrievalClassifier,
    StagedEncoder,
)
from clipretrieval.explanation import ExplainedNeighbor, explain_stream
from clipretrieval.stores import FaissStore, MemoryStore

POINTS = np.array([[0, 0], [0, 1], [4, 0], [4, 3], [9, 9]], dtype=np.float32)
LABELS = ["a", "b", "b", "b", "c"]
SCRIPT = "<script>alert(1)</script>"


def halves(distances: Any) -> Any:
    """Weigh the nearest twice as much as the next, and so on."""
    return np.broadcast_to(0.5 ** np.arange(distances.shape[1]), distances.shape)


def huge(distances: Any) -> Any:
    """Give weights whose sum is all that float64 can hold."""
    return np.full(distances.shape, 1.5e308 / distances.shape[1])


class Page(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> list[Image.Image]:
        """Decode the pictures within the page."""
        found = []
        for tag, attributes in self.tags:
            if tag == "img":
                head, data = str(attributes["src"]).split(",")
                assert head == "data:image/jpeg;base64"
                found.append(Image.open(io.BytesIO(base64.b64decode(data))))
        return found


@pytest.fixture
def encoder() -> StagedEncoder:
    return StagedEncoder(stage="pixel")


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """Three pictures of one colour each, in two classes."""
    colours = {"dark/black.png": 0, "dark/grey.png": 60, "light/white.png": 255}
    for name, value in colours.items():
        path = tmp_path / "gallery" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 200), (value,) * 3).save(path)
    return tmp_path / "gallery"


@pytest.mark.parametrize("store", ["memory", "faiss", "chroma"])
def test_neighbours_and_shares_by_hand(store: str) -> None:
    """Ids, labels, distances and shares are those that can be worked out on paper."""
    classifier = RetrievalClassifier(store=store, k=3, weights="distance").fit(POINTS, LABELS)
    ids = [each for (each,) in classifier.kneighbors(POINTS, 1).ids]
    (found,) = classifier.explain([[0, 2]], 9)
    assert [each.id for each in found.neighbors] == [ids[1], ids[0], ids[3], ids[2], ids[4]]
    assert [each.label for each in found.neighbors] == ["b", "a", "b", "b", "c"]
    assert [each.distance for each in found.neighbors] == [1.0, 4.0, 17.0, 20.0, 130.0]
    total = 1 + 1 / 4 + 1 / 17
    expected = [1 / total, 1 / 4 / total, 1 / 17 / total, 0, 0]
    assert [each.share for each in found.neighbors] == pytest.approx(expected)
    assert (found.answer, found.query) == ("b", None)
    assert found.share == pytest.approx((1 + 1 / 17) / total)
    assert {each.source for each in found.neighbors} == {None}


@pytest.mark.parametrize(
    ("labels", "kind"),
    [([True, False], bool), ([3, -(2**40)], int), ([1.0, 2.0], float), (["7", "ü"], str)],
)
def test_labels_are_plain_values_of_the_fitted_type(labels: list[Any], kind: type) -> None:
    """Answers and neighbours' labels are of the type that was fitted, as JSON knows it."""
    classifier = RetrievalClassifier(store="memory", k=2).fit(POINTS[:2], labels)
    (found,) = classifier.explain(POINTS[:1])
    assert [each.label for each in found.neighbors] == labels
    assert {type(each) for each in (found.answer, *(n.label for n in found.neighbors))} == {kind}
    assert json.loads(json.dumps(found.to_dict()))["answer"] == labels[0]


@st.composite
def questions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a classifier's settings, what it holds, and what it is asked; equal vectors are frequent."""
    metric = draw(st.sampled_from(["l2", "cosine", "ip"]))
    weightings = ["uniform", "softmax", halves, huge, *(["distance"] if metric != "ip" else [])]
    elements = st.integers(-3, 3).map(float)
    count, asked = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    rows, queries = (draw(hnp.arrays(np.float32, (n, 3), elements=elements)) for n in (count, asked))
    if metric == "cosine":
        for each in (rows, queries):
            each[:, 0] = np.abs(each[:, 0]) + 1
    return {
        "metric": metric,
        "weights": draw(st.sampled_from(weightings)),
        "store": draw(st.sampled_from(["memory", "faiss"])),
        "temperature": draw(st.sampled_from([0.01, 0.07, 5.0])),
        "k": draw(st.integers(1, count)),
        "shown": draw(st.none() | st.integers(1, 15)),
        "rows": rows,
        "labels": draw(st.lists(st.sampled_from("abc"), min_size=count, max_size=count)),
        "queries": queries,
    }


@given(questions())
@pytest.mark.filterwarnings("ignore:there is only one class:clipretrieval.ClipRetrievalWarning")
@pytest.mark.filterwarnings("ignore:.* given under several labels:clipretrieval.ClipRetrievalWarning")
def test_an_explanation_agrees_with_the_answer(drawn: dict[str, Any]) -> None:
    """Under all weightings and metrics the answer is predict's, and the shares sum to 1."""
    given_ = {name: drawn[name] for name in ("metric", "weights", "store", "temperature", "k")}
    classifier = RetrievalClassifier(**given_).fit(drawn["rows"], drawn["labels"])
    found = classifier.explain(drawn["queries"], drawn["shown"])
    assert [each.answer for each in found] == classifier.predict(drawn["queries"]).tolist()
    near = classifier.kneighbors(drawn["queries"])
    width = min(max(drawn["shown"] or 0, drawn["k"]), classifier.store_.count())
    for place, each in enumerate(found):
        shares = [one.share for one in each.neighbors]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) >= 0
        assert set(shares[drawn["k"] :]) <= {0}
        assert each.share == pytest.approx(sum(n.share for n in each.neighbors if n.label == each.answer))
        assert 0 < each.share <= 1
        assert [one.id for one in each.neighbors][: drawn["k"]] == near.ids[place].tolist()
        assert len({one.id for one in each.neighbors}) == len(each.neighbors) == width
        distances = [one.distance for one in each.neighbors]
        assert distances == sorted(distances)
    shares = [each.share for each in found]
    columns = [classifier.classes_.tolist().index(each.answer) for each in found]
    probabilities = classifier.predict_proba(drawn["queries"])[np.arange(len(found)), columns]
    assert shares == pytest.approx(probabilities)


def test_who_votes_is_the_same_however_many_are_shown() -> None:
    """An approximate store searches wider for more; those that vote stay the ones that predict asks."""
    rng = np.random.default_rng(0)
    rows, queries = rng.standard_normal((2000, 32)), rng.standard_normal((150, 32))
    store = FaissStore(index="IVF32,SQ4", recall=0.05)
    classifier = RetrievalClassifier(store=store, k=1).fit(rows, [place % 50 for place in range(2000)])
    wide, near = classifier.kneighbors(queries, 20), classifier.kneighbors(queries)
    assert (wide.ids[:, :1] != near.ids).any()  # or the test shows nothing
    found = classifier.explain(queries, 20)
    assert [each.answer for each in found] == classifier.predict(queries).tolist()
    assert [[each.neighbors[0].id] for each in found] == near.ids.tolist()
    assert {len(each.neighbors) for each in found} == {20}


def test_a_picture_alone_gives_a_list_of_one(gallery: Path, encoder: StagedEncoder) -> None:
    """A path is the query of its explanation, and neighbours tell the files that they come from."""
    classifier = RetrievalClassifier(encoder, k=2).fit(gallery)
    path = gallery / "dark" / "black.png"
    (found,) = classifier.explain(path)
    assert found.query == str(path)
    assert found.answer == "dark"
    assert [each.source for each in found.neighbors] == [str(path), str(gallery / "dark" / "grey.png")]
    assert [each.share for each in found.neighbors] == [0.5, 0.5]
    with Image.open(path) as picture:
        (same,) = classifier.explain(picture)
    assert same.query is None
    assert [each.label for each in same.neighbors] == ["dark", "dark"]


def test_what_cannot_be_explained_is_refused(gallery: Path, encoder: StagedEncoder) -> None:
    """An unfitted classifier, no images, a senseless k and a damaged picture are errors as elsewhere."""
    classifier = RetrievalClassifier(encoder)
    with pytest.raises(NotFittedError):
        classifier.explain(gallery)
    classifier.fit(gallery)
    with pytest.raises(InvalidInputError, match="no images"):
        classifier.explain([])
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(InvalidInputError, match="k must be"):
            classifier.explain(gallery, wrong)  # type: ignore[arg-type]
    (gallery / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ImageDecodeError, match=r"bad\.png"):
        classifier.explain(gallery / "bad.png")


def test_a_k_beyond_the_store_shows_all(gallery: Path, encoder: StagedEncoder) -> None:
    """All neighbours are shown where k is more; a classifier whose own k is too great warns."""
    classifier = RetrievalClassifier(encoder, k=1).fit(gallery)
    assert [len(each.neighbors) for each in classifier.explain(gallery, 50)] == [3, 3, 3]
    classifier.set_params(k=5)
    with pytest.warns(ClipRetrievalWarning, match="k=5 is more than the 3") as caught:
        found = classifier.explain(gallery)
    assert [len(each.neighbors) for each in found] == [3, 3, 3]
    assert caught[0].filename == __file__


def test_a_stream_passes_over_what_it_is_told_to(gallery: Path, encoder: StagedEncoder) -> None:
    """With on_error="skip" damaged pictures are listed, and the others explained in their order."""
    classifier = RetrievalClassifier(encoder).fit(gallery)
    paths = [gallery / "dark" / "grey.png", gallery / "bad.png", gallery / "light" / "white.png"]
    paths[1].write_bytes(b"no picture")
    skipped: list[Any] = []
    found = list(explain_stream(classifier, paths, on_error="skip", skipped=skipped))
    assert [(each.query, each.answer) for each in found] == [
        (str(paths[0]), "dark"),
        (str(paths[2]), "light"),
    ]
    assert [each.source for each in skipped] == [str(paths[1])]


def test_a_stream_holds_one_batch_at_a_time() -> None:
    """The first answers come before the last questions are read, and metadata are looked up by the batch."""

    class Counted(MemoryStore):
        lookups: list[int] = []
        searches: list[int] = []

        def get(self, ids: Any) -> Any:
            self.lookups.append(len(ids))
            return super().get(ids)

        def search(self, vectors: Any, k: int) -> Any:
            self.searches.append(len(vectors))
            return super().search(vectors, k)

    rows = np.random.default_rng(0).standard_normal((40, 3))
    classifier = RetrievalClassifier(store=Counted(), k=2).fit(rows, [place % 3 for place in range(40)])
    stream = explain_stream(classifier, np.tile(rows, (250, 1)))
    next(stream)
    first = Counted.searches.copy()
    assert (len(first), Counted.lookups) == (1, [40])
    assert 1 + sum(1 for _ in stream) == 10_000
    assert sum(Counted.searches) == 10_000
    assert len(Counted.searches) == len(Counted.lookups) > 1


EXAMPLE = Explanation(
    query="/pictures/a folder with a rather long name/and one within it/test/cat.png",
    answer="cat",
    share=0.75,
    neighbors=(
        ExplainedNeighbor("0123456789abcdef0123456789abcdef", "cat", 0.125, 0.75, "/pictures/cat/1.png"),
        ExplainedNeighbor("b", "a dog of a breed with a very long name", 12.5, 0.25, None),
        ExplainedNeighbor("line\nbreak\u202e", "caf\u00e9", 1e10, 0.0, "/old/\udce9.png"),
    ),
)


def test_the_text_is_a_table() -> None:
    """Columns are aligned, long words shortened in their middle, and nothing breaks a line."""
    text = str(EXAMPLE)
    assert repr(EXAMPLE) == (
        "Explanation(answer='cat', share=0.75, distance=0.125, neighbors=3, query='/pictures/a folder with a "
        "rather long name/and one within it/test/cat.png')"
    )
    lines = text.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("cat for /pictures/")
    assert lines[0].endswith("test/cat.png (75.0% of the votes)")
    assert re.sub(" +", " ", lines[1]).split() == ["share", "distance", "label", "id", "source"]
    assert lines[2].split() == ["75.0%", "0.125", "cat", "01234…6789abcdef", "/pictures/cat/1.png"]
    assert "a dog of …h a very long name" in lines[3]
    assert lines[3].endswith(" -")
    assert "line" in lines[4]
    assert r"\u202e" in lines[4]
    assert lines[4].endswith(r"/old/\udce9.png")
    for column in ("label", "id", "source"):
        place = lines[1].index(column)
        assert {line[place - 2 : place] for line in lines[1:]} == {"  "}
        assert all(line[place] != " " for line in lines[1:])
    assert max(map(len, lines)) < 120
    text.encode()


@pytest.mark.parametrize(
    ("by", "text"),
    [
        ("share", "60.0% of the votes"),
        ("margin", "20.0% ahead of the second class"),
        ("distance", "distance 0.25"),
    ],
)
def test_each_measure_of_confidence_can_be_shown(by: str, text: str) -> None:
    """All three are attributes; the one that was asked for stands beside the answer."""
    rows = [[0.5], [1.5], [-2.0], [3.0], [-4.0]]
    classifier = RetrievalClassifier(store="memory", k=5).fit(rows, list("aabab"))
    (found,) = classifier.explain([[0.0]], by=by)
    assert (found.answer, found.share, found.margin, found.distance) == ("a", 3 / 5, 1 / 5, 0.25)
    assert str(found).splitlines()[0] == f"a ({text})"
    assert f"({text})" in found._repr_html_()
    assert found.to_dict()["margin"] == 1 / 5
    with pytest.raises(InvalidInputError, match="by must be one of"):
        classifier.explain([[0.0]], by="votes")


@given(
    hnp.arrays(np.float32, (6, 2), elements=st.floats(-9, 9, width=32)),
    st.sampled_from(["uniform", "softmax"]),
)
def test_shares_equal_those_of_predict_proba(asked: Any, weights: str) -> None:
    """To the last digit, so that a threshold from a report holds for explanations too."""
    classifier = RetrievalClassifier(store="memory", k=5, weights=weights).fit(POINTS, LABELS)
    shares = np.sort(classifier.predict_proba(asked), axis=1)
    report = classifier.evaluate(asked, ["a"] * 6, mistakes=0)
    for row, found in enumerate(classifier.explain(asked)):
        assert found.share == shares[row, -1] == report.confidence[row]
        assert found.margin == report.margin[row] == pytest.approx(shares[row, -1] - shares[row, -2])
        assert found.distance == report.distances[row]


def test_to_dict_holds_json_values() -> None:
    """All of an explanation survives JSON, paths that are no text as escapes."""
    found = Explanation("/\udce9.png", True, 1.0, EXAMPLE.neighbors[:1])
    assert json.loads(json.dumps(found.to_dict(), ensure_ascii=False).encode()) == {
        "query": r"/\udce9.png",
        "answer": True,
        "share": 1.0,
        "margin": None,
        "distance": 0.125,
        "neighbors": [
            {
                "id": "0123456789abcdef0123456789abcdef",
                "label": "cat",
                "distance": 0.125,
                "share": 0.75,
                "source": "/pictures/cat/1.png",
            }
        ],
    }


def test_html_shows_the_pictures(gallery: Path, encoder: StagedEncoder) -> None:
    """The page holds small pictures of the query and its neighbours, and refers to nothing else."""
    classifier = RetrievalClassifier(encoder, k=1).fit(gallery)
    (found,) = classifier.explain(gallery / "light" / "white.png", 3)
    text = found._repr_html_()
    page = Page(text)
    sizes = [picture.size for picture in page.pictures()]
    assert sizes == [(96, 64)] * 4
    means = [np.asarray(picture).mean() for picture in page.pictures()]
    assert means == pytest.approx([255, 255, 60, 0], abs=2)
    assert {tag for tag, _ in page.tags} == {"div", "p", "figure", "img", "figcaption", "br"}
    assert not re.search(r"https?:|url\(|<link|<script", text)
    assert "100.0%" in page.text
    assert len(text) < 20_000


def test_html_escapes_what_users_wrote(tmp_path: Path, encoder: StagedEncoder) -> None:
    """Labels, ids and paths cannot become markup, in text or in attributes."""
    path = tmp_path / 'a"onerror="alert(2)"><b>.png'
    Image.new("RGB", (8, 8)).save(path)
    classifier = RetrievalClassifier(encoder).fit([path, Image.new("RGB", (8, 8), (255,) * 3)], [SCRIPT, "b"])
    (found,) = classifier.explain(path)
    assert found.answer == SCRIPT
    for each in (found, Explanation(str(path) + SCRIPT, SCRIPT, 1.0, found.neighbors)):
        page = Page(each._repr_html_())
        assert {tag for tag, _ in page.tags} <= {"div", "p", "figure", "img", "figcaption", "br"}
        assert {name for _, attributes in page.tags for name in attributes} <= {
            "style",
            "title",
            "alt",
            "src",
        }
        assert SCRIPT in page.text
    assert str(path) in [attributes.get("title") for _, attributes in page.tags]


@pytest.mark.parametrize("fate", ["moved", "damaged", "cut short", "a folder", "empty", "a pipe"])
def test_html_does_without_a_picture_that_is_gone(fate: str, gallery: Path, encoder: StagedEncoder) -> None:
    """Where a file is gone or no picture any more, words stand in its place, and the rest is shown."""
    classifier = RetrievalClassifier(encoder).fit(gallery)
    (found,) = classifier.explain(gallery / "light" / "white.png", 3)
    path = Path(str(found.neighbors[1].source))
    content = path.read_bytes()
    path.unlink()
    if fate == "a folder":
        path.mkdir()
    elif fate == "a pipe":
        subprocess.run(["mkfifo", path], check=True)
    elif fate != "moved":
        path.write_bytes({"damaged": b"x" * 99, "cut short": content[:-40], "empty": b""}[fate])
    page = Page(found._repr_html_())
    assert len(page.pictures()) == 3
    assert "not readable" in page.text
    assert page.text.count("dark") >= 2


def test_a_picture_without_a_file_says_so() -> None:
    """Vectors and pictures from memory have no file to show."""
    classifier = RetrievalClassifier(store="memory").fit(POINTS, LABELS)
    page = Page(classifier.explain(POINTS[:1])[0]._repr_html_())
    assert page.pictures() == []
    assert page.text.count("no file") == 2


def test_explaining_loads_no_torch() -> None:
    """An explanation of vectors needs neither torch nor a model."""
    code = (
        "import sys\n"
        "from clipretrieval import Explanation, RetrievalClassifier\n"
        "found = RetrievalClassifier(store='memory').fit([[0.0], [1.0]], [0, 1]).explain([[0.2]])\n"
        "assert isinstance(found[0], Explanation) and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
