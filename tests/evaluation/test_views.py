"""What is written of a report: JSON under its schema, Markdown, the page, matplotlib's charts."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import COMPARISON, SCRIPT, SETTING, made, mistaken
from PIL import Image

from clipretrieval import (
    ClipRetrievalWarning,
    EvaluationReport,
    FitReport,
    InvalidInputError,
    MissingDependencyError,
    RetrievalClassifier,
    StoreUnavailableError,
)
from clipretrieval._util.timing import Timing
from clipretrieval.comparison.speed import Speed
from clipretrieval.evaluation import (
    ComparisonReport,
    ComparisonRow,
    PageTable,
    render_page,
    write_page,
)
from clipretrieval.stores import MemoryStore

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text(encoding="utf-8"))
NAMES = ["cat", SCRIPT, "سيارة", "a|b*c*", "中文"]
CHARTS = ["plot_distances", "plot_risk_coverage", "plot_deciles", "plot_calibration", "plot_confusion"]


class Text(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def answered(y_true: Any, y_pred: Any, distances: Any, confidence: Any = None) -> EvaluationReport:
    """A report on given answers."""
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
    shares = None if confidence is None else np.asarray(confidence, np.float64)
    classes = np.unique(np.concatenate([y_true, y_pred]))
    return EvaluationReport(
        y_true, y_pred, np.asarray(distances, np.float32), classes, SETTING, Timing(), confidence=shares
    )


@st.composite
def reports(draw: st.DrawFn) -> EvaluationReport:
    """Few answers, among them all right ones, all wrong ones, one class, ties, and no neighbour at all."""
    n = draw(st.integers(1, 12))
    names = draw(
        st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=4, unique=True)
    )
    label = st.sampled_from(names)
    distance = st.sampled_from([0.0, 0.5, math.inf]) | st.floats(-(2.0**100), 2.0**100, width=32)
    columns = [draw(st.lists(kind, min_size=n, max_size=n)) for kind in (label, label, distance)]
    shares = draw(st.none() | st.lists(st.floats(0, 1), min_size=n, max_size=n))
    y_true, y_pred = np.array(columns[0], object), np.array(columns[1], object)
    if draw(st.booleans()):
        y_pred = y_true.copy()
    return answered(y_true, y_pred, columns[2], shares)


@settings(max_examples=40)
@given(reports())
def test_every_report_can_be_written(report: EvaluationReport) -> None:
    """JSON without NaN that keeps to the schema; Markdown, text and a page whatever the answers are."""
    content = json.loads(report.to_json(), parse_constant=pytest.fail)
    jsonschema.validate(content, SCHEMA)
    assert content["reliability"]["risk_coverage"]["points"][-1]["kept"] == report.n_test
    assert sum(content["histogram"]["right"]) == content["distances"]["right"]["count"]
    assert (content["calibration"] is None) == (report.confidence is None)
    assert report.to_markdown().startswith("# Evaluation")
    assert f"{report.accuracy:.2%}" in Text(report.to_html()).text
    assert str(report)


def test_json_holds_what_the_report_measures() -> None:
    """Each figure is that of the report; mistakes are there with their neighbours."""
    report = made(300, NAMES, mistakes=[mistaken("cat", SCRIPT, None)])
    content = json.loads(report.to_json())
    jsonschema.validate(content, SCHEMA)
    assert content["reliability"]["error_auroc"] == report.error_auroc
    assert content["reliability"]["risk_coverage"]["area"] == report.risk_coverage.area
    assert content["reliability"]["deciles"] == report.deciles
    assert content["calibration"]["ece"] == report.calibration.ece
    assert content["macro_f1"] == report.macro["macro_f1"]
    [mistake] = content["mistakes"]
    assert (mistake["true"], mistake["answer"], mistake["index"]) == (SCRIPT, "cat", 7)
    assert [each["source"] for each in mistake["neighbors"]] == [None, "/nowhere/\\udcff.png", None]


def test_json_holds_each_measure_of_confidence() -> None:
    """All three by their names, the distance at the top as well, and which one ranks the mistakes best."""
    report = made(300, NAMES)
    content = json.loads(report.to_json())["reliability"]
    assert content["best_measure"] == report.best_measure == "distance"
    assert list(content["by"]) == ["share", "margin", "distance"]
    for by, found in content["by"].items():
        assert found["error_auroc"] == report.reliability(by).error_auroc
        assert found["deciles"] == report.reliability(by).deciles
        assert found["risk_coverage"]["area"] == report.reliability(by).risk_coverage.area
    assert content["by"]["distance"] == {key: content[key] for key in content["by"]["distance"]}
    assert [point["threshold"] for point in content["by"]["share"]["risk_coverage"]["points"]] == [
        *(1.0, 0.8, 0.6, 0.4, 0.2)
    ]


@pytest.mark.parametrize(
    ("setting", "axis"),
    [
        ({"metric": "l2"}, "squared Euclidean distance to the nearest neighbor"),
        ({"metric": "cosine"}, "cosine distance to the nearest neighbor"),
        ({"metric": "ip"}, "negative inner product with the nearest neighbor"),
        ({"metric": "cosine", "store": "prompts"}, "cosine distance to the nearest prompt"),
    ],
)
def test_distances_are_called_what_they_are(setting: dict[str, str], axis: str, pyplot: Any) -> None:
    """In the text, on the page and in the chart: the unit, and that a zero-shot answer has no neighbours."""
    report = replace(made(50, ["cat", "dog"]), setting={**SETTING, **setting})
    page = Text(report.to_html()).text
    assert f"median {axis}: correct " in str(report)
    assert page.count(axis) >= 2
    assert report.plot_distances().get_xlabel() == axis
    zero_shot = setting.get("store") == "prompts"
    assert ("Keep the answers with a probability of at least" in page) == zero_shot
    assert ("share of the votes" in page) != zero_shot
    assert ("the nearest neighbor" in page) != zero_shot


def test_the_page_says_which_measure_ranks_best_and_what_that_is_worth() -> None:
    """The areas of all three, the best one in bold, and that it was chosen on the same images."""
    report = made(300, NAMES)
    page, text = report.to_html(), Text(report.to_html()).text
    for by in ("share", "margin", "distance"):
        assert f"{report.reliability(by).error_auroc:.4f}" in text
    assert f"<strong>{report.error_auroc:.4f}</strong>" in page
    best = "the distance ranks the mistakes best. It was chosen on the same images"
    for shown in (text, str(report), report.to_markdown()):
        assert best in shown
    right = answered(["a"], ["a"], [1.0], [1.0])
    assert "No answer is incorrect, so there is nothing to rank." in Text(right.to_html()).text


def test_captions_of_mistakes_name_the_file_and_the_units(tmp_path: Path) -> None:
    """The file's name without its folder, the share of the votes and the distance; no file, no name."""
    picture = tmp_path / "sun.png"
    Image.new("RGB", (20, 10), "orange").save(picture)
    page = made(100, NAMES, mistakes=[mistaken("cat", SCRIPT, str(picture))]).to_html()
    text = Text(page).text
    assert text.count("sun.png") == 2
    assert str(tmp_path) not in text
    assert "100% of the votes" in text
    assert text.count("distance 0.2") == 2
    assert "Distances are squared Euclidean distances." in text
    assert "image 8" in Text(made(100, NAMES, mistakes=[mistaken("cat", SCRIPT, None)]).to_html()).text


@pytest.mark.parametrize("count", [1, 15, 16, 17, 60])
def test_every_point_of_the_time_chart_has_its_name(count: int) -> None:
    """The chart grows with its rows, and the names stay apart and within it."""
    rows = [
        {"name": f"row {place}", "accuracy": 0.5 + place / 200, "inference_s_per_1000": 1.0 + place}
        for place in range(count)
    ]
    page = render_page([], comparison=rows)
    chart = page[page.index("<svg viewBox") : page.index("</svg>", page.index("<svg viewBox"))]
    height = float(re.findall(r'viewBox="0 0 400 ([\d.]+)"', chart)[0])
    places = sorted(float(y) for y in re.findall(r'<text class="label" x="[\d.]+" y="([\d.]+)"', chart))
    assert len(places) == count
    assert all(second - first >= 12.9 for first, second in pairwise(places))
    assert places[0] > 0
    assert places[-1] < height - 40


def test_a_part_that_took_no_time_has_no_rate() -> None:
    """Hundredths of a second are shown, and from less than one no images a second are worked out."""
    timing = Timing(
        {"flush": 2e-6, "search": 0.004, "encode": 0.5}, dict.fromkeys(("flush", "search", "encode"), 100)
    )
    report = replace(made(100, NAMES), timing=timing, fit_timing=timing)
    rows = {
        line[:12].strip(): line.split()[-2:]
        for line in str(report).splitlines()
        if line[:3] in ("flu", "sea", "enc", "fit")
    }
    assert rows["flush"] == ["0.00", "-"]
    assert rows["fit flush"] == ["0.00", "-"]
    assert rows["search"] == ["0.00", "-"]
    assert rows["encode"] == ["0.50", "200.0"]
    assert json.loads(report.to_json())["timing"]["parts"]["flush"]["images_per_second"] is None
    quick = FitReport(5, 0, 0, (), timing, 1e-5)
    assert str(quick).splitlines()[0] == "5 images in 0.00 s: 5 new"


def test_notebooks_show_a_small_table() -> None:
    """The figures, the measures and the classes, escaped, with no script and nothing from elsewhere."""
    report = made(300, NAMES)
    page = report._repr_html_()
    found = Text(page)
    assert set(found.tags) <= {"div", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert f"{report.accuracy:.2%}" in found.text
    assert SCRIPT in found.text
    assert len(page) < 6000
    assert "and 180 more classes" in Text(made(3000, [f"c{i}" for i in range(200)])._repr_html_()).text
    row = ComparisonRow(
        SCRIPT, replace(report, setting={**SETTING, "weights": "uniform"}), Speed(1.5, 0.25), 4096
    )
    comparison = ComparisonReport((row,), SCRIPT, 9, 300, 50)
    shown = Text(comparison._repr_html_())
    assert set(shown.tags) <= {"div", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert SCRIPT in shown.text
    assert "1.75" in shown.text


def test_schema_refuses_what_is_no_report() -> None:
    """A missing figure and a share above one are found."""
    content = json.loads(made(20, NAMES).to_json())
    for spoilt in ({**content, "accuracy": 1.5}, {k: v for k, v in content.items() if k != "reliability"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoilt, SCHEMA)


def test_markdown_shows_names_as_text(tmp_path: Path) -> None:
    """Nothing in a name begins a tag, a cell or emphasis; the file holds what is returned."""
    text = made(300, NAMES).to_markdown(tmp_path / "report.md")
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == text + "\n"
    assert "<script" not in text
    assert "| &lt;script&gt;alert(1)&lt;/script&gt; |" in text
    assert r"| a\|b\*c\* |" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_page_holds_pictures_and_no_address(tmp_path: Path) -> None:
    """Thumbnails are in the page where the files are; nothing in it refers to anything outside."""
    picture = tmp_path / "sun.png"
    Image.new("RGB", (200, 100), "orange").save(picture)
    report = made(100, NAMES, mistakes=[mistaken("cat", SCRIPT, str(picture))])
    page = report.to_html(tmp_path / "page.html", title="Über <b>")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page + "\n"
    found = Text(page)
    assert found.tags.count("img") == 2  # in question, and the one neighbour whose file is there
    assert "b" not in found.tags
    assert "Über <b>" in found.text
    assert found.tags.count("script") == 2
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?!["']?(?:data:|#))""", page)
    assert Text(report.to_html(pictures=False)).tags.count("img") == 0


def test_page_compares_reports() -> None:
    """One section a report, one row a comparison; missing is a dash, a column without values is left out."""
    table = PageTable(
        "Beside", [("name", "stage"), ("difference", "points")], [{"name": "mid", "difference": -0.5}]
    )
    page = render_page(
        {"mid": made(50, NAMES), "late": made(50, NAMES, 1)},
        comparison=COMPARISON,
        tables=[table],
        title="Stages",
        notes=["Two <i>stages</i>."],
    )
    text = Text(page).text
    for part in ("84.00%", "3.00 ×", "4.0 KiB", "–", "-0.5", "Two <i>stages</i>.", "Accuracy over time"):
        assert part in text
    assert "McNemar" not in text
    assert page.count('class="report"') == 2
    assert '<a href="#report-2"><bdi>late</bdi></a>' in page
    assert "<strong>84.00%</strong>" in page


def test_page_of_a_comparison_alone() -> None:
    """A table needs no report, and no times for a chart."""
    text = Text(render_page([], comparison=[{"name": "a", "accuracy": 0.5}])).text
    assert "50.00%" in text
    assert "Accuracy over time" not in text


def test_pages_stay_small() -> None:
    """A hundred thousand answers in two hundred classes make no large page."""
    assert len(made(100_000, [f"class {place}" for place in range(200)], errors=0.9).to_html()) < 2_000_000


def test_what_cannot_be_shown_or_written_is_refused(tmp_path: Path) -> None:
    """Nothing to show, and folders that are not there."""
    with pytest.raises(InvalidInputError, match="at least one report"):
        render_page([])
    report = made(5, NAMES)
    for write in (
        report.to_html,
        report.to_json,
        report.to_markdown,
        lambda path: write_page(path, {"a": report}),
    ):
        with pytest.raises(InvalidInputError, match="cannot be written"):
            write(tmp_path / "missing" / "file")
    with pytest.raises(InvalidInputError, match="at least one image"):
        answered([], [], [])
    with pytest.raises(InvalidInputError, match="arrays of shape"):
        answered(["a"], ["a"], [1.0, 2.0])


@pytest.fixture
def pyplot() -> Any:
    mpl.use("agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


@pytest.mark.parametrize("name", CHARTS)
def test_charts_return_their_axes(pyplot: Any, name: str) -> None:
    """On axes of one's own, or on new ones; for one right answer too."""
    for report in (made(200, ["cat", "a$b$"]), answered([1], [1], [math.inf], [1.0])):
        ax = pyplot.subplots()[1]
        assert getattr(report, name)(ax) is ax
        assert ax.get_xlabel()
        assert getattr(report, name)() is not ax
        ax.figure.canvas.draw()


def test_charts_show_the_figures(pyplot: Any) -> None:
    """The counts of the histogram, the points of the curves, the cells of the matrix."""
    report = made(200, NAMES)
    steps = [patch.get_data() for patch in report.plot_distances(bins=7).patches]
    found = report.distance_histogram(7)
    assert steps[0].values.tolist() == found.right.tolist()
    assert steps[-1].values.tolist() == found.wrong.tolist()
    assert report.plot_risk_coverage().lines[0].get_ydata().tolist() == report.risk_coverage.risk.tolist()
    assert report.plot_calibration().lines[1].get_ydata().tolist() == report.calibration.accuracy.tolist()
    heights = [bar.get_height() for bar in report.plot_deciles().patches]
    assert heights == [row["accuracy"] for row in report.deciles]
    cells = report.plot_confusion().images[0].get_array()
    assert np.asarray(cells).sum(axis=1).tolist() == pytest.approx([1] * 5)


def test_charts_without_confidence_or_matplotlib(pyplot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is named, with the command that installs it."""
    with pytest.raises(InvalidInputError, match="no confidence"):
        answered([1], [1], [0.5]).plot_calibration()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "clipretrieval\[plots\]"'):
        made(5, NAMES).plot_distances()


def test_importing_the_report_loads_no_matplotlib() -> None:
    """Nor jinja2: both wait until something is drawn."""
    code = "import sys, clipretrieval.evaluation.report; print({'matplotlib', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


class TestMistakes:
    """The worst mistakes that an evaluation keeps."""

    POINTS = np.array([[0.0], [1.0], [2.0], [3.0], [4.0]], np.float32)
    LABELS = ("a", "a", "a", "b", "b")

    def evaluate(self, asked: Any, truth: Any, k: int = 3, **options: Any) -> EvaluationReport:
        classifier = RetrievalClassifier(store="memory", k=k).fit(self.POINTS, self.LABELS)
        return classifier.evaluate(np.array(asked, np.float32)[:, None], truth, **options)

    def test_most_certain_and_nearest_first(self) -> None:
        """By share, then by distance, then in their order; each with the votes it rests on."""
        report = self.evaluate([0.9, 2.1, 0.0, 0.0, 4.0], ["b", "b", "b", "a", "b"])
        assert [mistake.index for mistake in report.mistakes] == [2, 0, 1]
        assert report.confidence.tolist() == pytest.approx([1, 2 / 3, 1, 1, 2 / 3])
        worst = report.mistakes[0]
        assert (worst.truth, worst.explanation.answer, worst.explanation.share) == ("b", "a", 1.0)
        assert worst.distance == 0.0
        assert [near.distance for near in worst.explanation.neighbors] == [0, 1, 4, 9, 16]
        assert [near.share > 0 for near in worst.explanation.neighbors] == [True] * 3 + [False] * 2

    def test_equal_ones_stay_in_order_and_are_bounded(self) -> None:
        """Over many batches no more than asked for are kept: the first of those that are alike."""
        report = self.evaluate([0.5, 0.0, 0.0] * 1000, ["b"] * 3000, k=1, mistakes=3)
        assert [mistake.index for mistake in report.mistakes] == [1, 2, 4]

    def test_none_are_kept_where_none_are_asked_for(self) -> None:
        """Neither of right answers nor under 0; fewer than none is refused."""
        assert self.evaluate([0.0], ["a"]).mistakes == ()
        assert self.evaluate([0.0], ["b"], mistakes=0).mistakes == ()
        with pytest.raises(InvalidInputError, match="at least 0"):
            self.evaluate([0.0], ["b"], mistakes=-1)

    def test_a_store_that_fails_afterwards_costs_the_mistakes_alone(self) -> None:
        """The figures are there, and a warning tells what is not."""

        class Failing(MemoryStore):
            def get(self, ids: Any) -> Any:
                raise StoreUnavailableError("gone")

        classifier = RetrievalClassifier(store=Failing(), k=3).fit(self.POINTS, self.LABELS)
        with pytest.warns(ClipRetrievalWarning, match="could not be looked up: gone") as caught:
            report = classifier.evaluate(self.POINTS, ["b"] * 5)
        assert caught[0].filename == __file__
        assert (report.accuracy, report.mistakes) == (0.4, ())

    def test_confidence_is_the_share_of_the_votes(self) -> None:
        """As predict_proba has it."""
        classifier = RetrievalClassifier(store="memory", k=4, weights="softmax").fit(self.POINTS, self.LABELS)
        asked = np.linspace(-1, 5, 20, dtype=np.float32)[:, None]
        report = classifier.evaluate(asked, ["a"] * 20)
        assert report.confidence == pytest.approx(classifier.predict_proba(asked).max(axis=1))
