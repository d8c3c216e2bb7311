"""The study's figures beside ours: as rows, Markdown, a page and histograms."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipretrieval.comparison import views as _comparison_views
from clipretrieval.comparison.report import ZERO_SHOT, ComparisonReport
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.encoding.stages import Architecture
from clipretrieval.encoding.weights.checkpoints import is_published
from clipretrieval.encoding.weights.model_source import HF_HUB
from clipretrieval.evaluation.markdown import markdown_table
from clipretrieval.images.folders import ImageFolder

if TYPE_CHECKING:
    from clipretrieval.comparison.reproduction import Reproduction

__all__ = [
    "FIGURES",
    "as_html",
    "as_markdown",
    "as_text",
    "check_figures",
    "draw_histograms",
    "histogram_name",
    "study_rows",
    "what_differs",
]

STUDY = {
    ZERO_SHOT: (0.7053, 128.0),
    "pixel": (0.3539, 290.0),
    "mid": (0.7150, 321.0),
    "late": (0.7731, 589.0),
}
"""Accuracy and seconds per 1,000 images in the study."""
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RN50 = Architecture(layers=(3, 4, 6, 3), width=64, output_dim=1024, heads=32, image_size=224)
FIGURES = ("pixel", "mid", "late")
"""Of which the study drew the distances."""
_TITLE = "The study, run again"
_HEAD = [
    *("stage", "accuracy", "study", "difference, points"),
    *("s per 1,000", "study, s", "study's time / ours"),
]


def study_rows(comparison: ComparisonReport) -> list[dict[str, Any]]:
    """Put each row's figures beside those of the study, None where it has none."""
    rows = []
    for row in comparison.rows:
        accuracy, seconds = STUDY.get(row.name, (None, None))
        total = row.speed.total_s
        rows.append(
            {
                "name": row.name,
                "accuracy": row.report.accuracy,
                "study_accuracy": accuracy,
                "accuracy_difference": None if accuracy is None else row.report.accuracy - accuracy,
                "s_per_1000": total,
                "study_s_per_1000": seconds,
                "s_ratio": None if seconds is None else seconds / total,
            }
        )
    return rows


def what_differs(
    encoder: StagedEncoder, comparison: ComparisonReport, train: ImageFolder, test: ImageFolder, store: str
) -> list[str]:
    """Say in what a run is not the study's, a sentence each."""
    found = []
    found += _what_of_the_model(encoder)
    if tuple(train.classes) != CLASSES:
        found.append("Other classes than CIFAR-10's: no accuracy is comparable.")
    elif any(path.suffix.lower() in (".jpg", ".jpeg") for path in (*train.paths[:1], *test.paths[:1])):
        found.append("Other pixels: the pictures are JPEG files, which differ a little from the original's.")
    if (comparison.n_train, comparison.n_test) != (50_000, 10_000):
        found.append(
            f"Other numbers: {comparison.n_train} pictures to learn from and {comparison.n_test} to answer "
            "instead of 50,000 and 10,000."
        )
    if store != "pinecone":
        found.append(
            f"Another store: {store} instead of Pinecone, so no network lies between query and answer."
        )
    found.append(
        "Another machine: times are comparable with each other, not with the study's. CLIP's own time is "
        "measured on the same engine as the stages'; open_clip's as it comes stands beside it."
    )
    return found


def _what_of_the_model(encoder: StagedEncoder) -> list[str]:
    """Say that the model is another, or may be: weights of RN50's form can be a copy of OpenAI's."""
    source, named = encoder._source, encoder.model in ("RN50", "RN50-quickgelu")
    if named and encoder.pretrained == "openai":
        return []
    if source.path is not None and source.architecture == RN50 and is_published(source.path):
        return []
    model = encoder.model if isinstance(encoder.model, str) else type(encoder.model).__name__
    weights = encoder.pretrained or "its own weights"
    expected = "no accuracy but that at pixel can be expected to be the study's."
    brought = source.path is not None or source.module is not None or not isinstance(encoder.model, str)
    if source.architecture == RN50 and (brought or str(encoder.model).startswith(HF_HUB)):
        return [
            f"Perhaps other weights: {model} with {weights}, which is not the file that OpenAI published for "
            f"RN50; unless it is a copy of that, {expected}"
        ]
    return [f"Another model: {model} with {weights} instead of RN50 with OpenAI's weights; {expected}"]


def as_text(found: Reproduction) -> str:
    """Write the study's table, then the comparison's, for a terminal."""
    table = [_HEAD, *_cells(found)]
    widths = [max(len(line[place]) for line in table) for place in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    return "\n".join([*lines, "", *found.differences, "", str(found.comparison)])


def as_markdown(found: Reproduction) -> str:
    """Write the study's table, what differs, and the comparison."""
    notes = "\n".join(f"- {sentence}" for sentence in found.differences)
    table = markdown_table(_HEAD, _cells(found), numbers=True)
    rest = found.comparison.to_markdown().replace("# Comparison", "## Comparison", 1)
    return f"# {_TITLE}\n\n{table}\n\n## What is not comparable\n\n{notes}\n\n{rest}"


def as_html(found: Reproduction) -> str:
    """Write one page: the study's table, the comparison, and each row's report."""
    from clipretrieval.evaluation.page.render import PageTable

    rows = study_rows(found.comparison)
    columns = list(zip(rows[0], _HEAD, strict=True))
    table = PageTable("Beside the study", columns, rows, note=" ".join(found.differences))
    return _comparison_views.as_html(found.comparison, title=_TITLE, tables=[table])


def check_figures() -> None:
    """Find out whether the histograms can be drawn.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    from clipretrieval.errors import MissingDependencyError

    if find_spec("matplotlib") is None:
        raise MissingDependencyError(
            'the histograms need matplotlib, which is not installed; run: pip install "clipretrieval[plots]"',
            name="matplotlib",
        )


def draw_histograms(comparison: ComparisonReport, folder: Path) -> list[Path]:
    """Draw the distances of right and wrong answers of three stages, as PNG files.

    Returns
    -------
    list of Path
        ``distances-STAGE.png``.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    from clipretrieval._util.files import replacing
    from clipretrieval.errors import InvalidInputError

    check_figures()
    from matplotlib.figure import Figure

    paths = []
    for name in FIGURES:
        figure = Figure(layout="constrained")
        axes = comparison[name].report.plot_distances(figure.subplots())
        axes.set_title(name)
        path = folder / histogram_name(name)
        try:
            with replacing(path) as temporary:
                figure.savefig(temporary, format="png", dpi=120)
        except OSError as error:
            raise InvalidInputError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
        paths.append(path)
    return paths


def histogram_name(stage: str) -> str:
    """Return the name of the file that a stage's histogram is in."""
    return f"distances-{stage}.png"


def _cells(found: Reproduction) -> list[list[str]]:
    return [
        [
            row["name"],
            f"{row['accuracy']:.2%}",
            _shown(row["study_accuracy"], ".2%"),
            _shown(row["accuracy_difference"] and 100 * row["accuracy_difference"], "+.2f"),
            f"{row['s_per_1000']:.2f}",
            _shown(row["study_s_per_1000"], ".0f"),
            _shown(row["s_ratio"], ".1f"),
        ]
        for row in found.rows
    ]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
