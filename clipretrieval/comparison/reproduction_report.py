"""The study's figures beside ours: as rows, Markdown, a page and histograms."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipretrieval._util.files import replacing, write_report
from clipretrieval._util.repr import short_repr
from clipretrieval._util.tables import aligned_table, markdown_table, number_cell
from clipretrieval._util.text import json_document
from clipretrieval.comparison.report import ZERO_SHOT, ComparisonReport, comparison_page
from clipretrieval.encoding.staged_encoder import StagedEncoder
from clipretrieval.encoding.stages import Architecture
from clipretrieval.encoding.weights.checkpoints import is_published
from clipretrieval.encoding.weights.model_source import HF_HUB
from clipretrieval.errors import InvalidInputError, MissingDependencyError
from clipretrieval.images.folders import ImageFolder

__all__ = ["FILES", "Reproduction", "check_histograms", "reproduction_text", "what_differs"]

STUDY = {
    ZERO_SHOT: (0.7053, 128.0),
    "pixel": (0.3539, 290.0),
    "mid": (0.7150, 321.0),
    "late": (0.7731, 589.0),
}
"""Accuracy and seconds per 1,000 images in the study."""
STUDY_STORE = "pinecone"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RN50 = Architecture(layers=(3, 4, 6, 3), width=64, output_dim=1024, heads=32, image_size=224)
HISTOGRAMS = {stage: f"distances-{stage}.png" for stage in ("pixel", "mid", "late")}
"""The stages of which the study drew the distances, and the files of ours."""
REPORTS = ("report.json", "report.md", "report.html")
FILES = (*REPORTS, *HISTOGRAMS.values())
"""What `Reproduction.save` writes."""
_TITLE = "The study, run again"
_HEAD = (
    *("stage", "accuracy", "study", "difference, points"),
    *("s per 1,000", "study, s", "study's time / ours"),
)


@dataclass(frozen=True, eq=False)
class Reproduction:
    """Our figures beside the study's.

    Attributes
    ----------
    comparison : ComparisonReport
    differences : tuple of str
        In what this run is not the study's, a sentence each.
    """

    comparison: ComparisonReport
    differences: tuple[str, ...]

    def __repr__(self) -> str:
        rows = {row["name"]: round(row["accuracy"], 4) for row in self.rows}
        return short_repr(self, accuracy=rows, differences=len(self.differences))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One a stage: ours, the study's, and the difference; see `to_dict`."""
        rows = []
        for row in self.comparison.rows:
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

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values.

        Returns
        -------
        dict
            That of the comparison, with the ``kind`` ``"reproduction"``, and ``study``: for each stage
            ``name``, ``accuracy``, ``study_accuracy``, ``accuracy_difference`` (ours minus the study's),
            ``s_per_1000``, ``study_s_per_1000``, ``s_ratio`` (the study's divided by ours), None where the
            study has no figure; and ``differences``.
        """
        return {
            **self.comparison.to_dict(),
            "kind": "reproduction",
            "study": self.rows,
            "differences": list(self.differences),
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Return `to_dict` as JSON, and write it to `path`, atomically, if one is given."""
        return write_report(path, json_document(self.to_dict(), 2))

    def to_markdown(self, path: str | Path | None = None) -> str:
        """Return the tables as Markdown, and write them to `path`, atomically, if one is given."""
        notes = "\n".join(f"- {sentence}" for sentence in self.differences)
        table = markdown_table(_HEAD, _study_cells(self), numbers=True)
        rest = self.comparison.to_markdown().replace("# Comparison", "## Comparison", 1)
        text = f"# {_TITLE}\n\n{table}\n\n## What is not comparable\n\n{notes}\n\n{rest}"
        return write_report(path, text)

    def to_html(self, path: str | Path | None = None) -> str:
        """Return all of it as one HTML page, and write it to `path`, atomically, if one is given."""
        from clipretrieval.evaluation.page.parts import PageTable

        rows = self.rows
        columns = list(zip(rows[0], _HEAD, strict=True))
        table = PageTable("Beside the study", columns, rows, note=" ".join(self.differences))
        return write_report(path, comparison_page(self.comparison, title=_TITLE, tables=[table]))

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``report.json``, ``report.md``, ``report.html`` and three histograms into a folder.

        Returns
        -------
        list of Path
            What was written. The histograms need the extra ``plots``.

        Raises
        ------
        InvalidInputError
            If a file cannot be written.
        MissingDependencyError
            If matplotlib is not installed; the reports are there then.
        """
        root = Path(folder)
        paths = [root / name for name in REPORTS]
        self.to_json(paths[0])
        self.to_markdown(paths[1])
        self.to_html(paths[2])
        return [*paths, *_draw_histograms(self.comparison, root)]


def reproduction_text(found: Reproduction) -> str:
    """Write the study's table, then the comparison's, for a terminal."""
    table = aligned_table([_HEAD, *_study_cells(found)])
    return "\n".join([*table, "", *found.differences, "", str(found.comparison)])


def what_differs(
    encoder: StagedEncoder, comparison: ComparisonReport, train: ImageFolder, test: ImageFolder, store: str
) -> list[str]:
    """Say in what a run is not the study's, a sentence each."""
    found = []
    found += _what_of_the_model(encoder)
    if tuple(train.classes) != CLASSES:
        found.append("Other classes than CIFAR-10's: no accuracy is comparable.")
    elif any(path.suffix.lower() in (".jpg", ".jpeg") for path in (*train.paths[:1], *test.paths[:1])):
        found.append("Other pixels: the images are JPEG files, which differ a little from the original's.")
    if (comparison.n_train, comparison.n_test) != (50_000, 10_000):
        found.append(
            f"Other numbers: {comparison.n_train} images to learn from and {comparison.n_test} to answer "
            "instead of 50,000 and 10,000."
        )
    if store != STUDY_STORE:
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
    is_rn50 = source.is_resnet and source.architecture == RN50
    if source.path is not None and is_rn50 and is_published(source.path):
        return []
    model = encoder.model if isinstance(encoder.model, str) else type(encoder.model).__name__
    weights = encoder.pretrained or "its own weights"
    expected = "no accuracy but that at pixel can be expected to be the study's."
    brought = source.path is not None or source.module is not None or not isinstance(encoder.model, str)
    if is_rn50 and (brought or str(encoder.model).startswith(HF_HUB)):
        return [
            f"Perhaps other weights: {model} with {weights}, which is not the file that OpenAI published for "
            f"RN50; unless it is a copy of that, {expected}"
        ]
    return [f"Another model: {model} with {weights} instead of RN50 with OpenAI's weights; {expected}"]


def check_histograms() -> None:
    """Find out whether the histograms can be drawn.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingDependencyError(
            'the histograms need matplotlib, which is not installed; run: pip install "clipretrieval[plots]"',
            name="matplotlib",
        )


def _draw_histograms(comparison: ComparisonReport, folder: Path) -> list[Path]:
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
    check_histograms()
    from matplotlib.figure import Figure

    paths = []
    for name, file in HISTOGRAMS.items():
        figure = Figure(layout="constrained")
        axes = comparison[name].report.plot_distances(figure.subplots())
        axes.set_title(name)
        path = folder / file
        try:
            with replacing(path) as temporary:
                figure.savefig(temporary, format="png", dpi=120)
        except OSError as error:
            raise InvalidInputError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
        paths.append(path)
    return paths


def _study_cells(found: Reproduction) -> list[list[str]]:
    return [
        [
            row["name"],
            f"{row['accuracy']:.2%}",
            number_cell(row["study_accuracy"], ".2%"),
            number_cell(row["accuracy_difference"] and 100 * row["accuracy_difference"], "+.2f"),
            f"{row['s_per_1000']:.2f}",
            number_cell(row["study_s_per_1000"], ".0f"),
            number_cell(row["s_ratio"], ".1f"),
        ]
        for row in found.rows
    ]
