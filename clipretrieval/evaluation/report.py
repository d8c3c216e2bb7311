"""What an evaluation found, ready to be read, compared and written down."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from clipretrieval._atomic import write_text
from clipretrieval._timing import Timing
from clipretrieval._version import __version__
from clipretrieval.errors import InvalidInputError
from clipretrieval.evaluation.metrics import class_table, summarise_distances, wilson_interval
from clipretrieval.images import SkippedImage
from clipretrieval.types import AnyArray, FloatArray

__all__ = ["SCHEMA_VERSION", "EvaluationReport"]

SCHEMA_VERSION = 1
_PARTS = ("decode", "encode", "store", "flush", "search")
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "faiss-cpu", "scikit-learn", "pillow")


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """A classifier's answers on labelled images, and what follows from them.

    Attributes
    ----------
    y_true, y_pred : ndarray, shape (n_test,)
    distances : ndarray of float32, shape (n_test,)
        From each image to its nearest neighbour, in the store's metric.
    classes : ndarray, shape (n_classes,)
        Every label fitted or met, sorted.
    setting : mapping
        ``n_train``, ``model``, ``pretrained``, ``stage``, ``plan``, ``dim``, ``store``, ``metric``, ``k``,
        ``weights``.
    timing : Timing
        Of this evaluation.
    fit_timing : Timing
        Of the fit before it, whose parts overlap; empty where the classifier was loaded.
    fit_seconds : float
        Wall time of that fit; 0.0 where the classifier was loaded.
    seconds : float
        Wall time of the evaluation.
    skipped : tuple of SkippedImage
    """

    y_true: AnyArray
    y_pred: AnyArray
    distances: FloatArray
    classes: AnyArray
    setting: Mapping[str, Any]
    timing: Timing
    fit_timing: Timing = field(default_factory=Timing)
    fit_seconds: float = 0.0
    seconds: float = 0.0
    skipped: tuple[SkippedImage, ...] = ()

    @property
    def n_test(self) -> int:
        """Number of images that were answered."""
        return len(self.y_true)

    @cached_property
    def correct(self) -> AnyArray:
        """Mask of shape (n_test,): where the answer was right."""
        right: AnyArray = self.y_true == self.y_pred
        return right

    @property
    def accuracy(self) -> float:
        """Share of right answers, in [0, 1]."""
        return float(self.correct.mean())

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The accuracy's 95 % Wilson interval."""
        return wilson_interval(int(self.correct.sum()), self.n_test)

    @cached_property
    def confusion_matrix(self) -> AnyArray:
        """Counts, shape (n_classes, n_classes): true classes in rows, answers in columns."""
        if len(self.classes) == 1:  # scikit-learn warns of this one
            return np.array([[self.n_test]])
        matrix: AnyArray = confusion_matrix(self.y_true, self.y_pred, labels=self.classes)
        return matrix

    @cached_property
    def per_class(self) -> list[dict[str, Any]]:
        """Precision, recall, F1 and support of each class; see `metrics.class_table`."""
        return class_table(self.y_true, self.y_pred, self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single answers as JSON values.

        Returns
        -------
        dict
            ``schema_version``, ``accuracy``, ``accuracy_interval``, ``n_test``, ``n_skipped``, the
            setting's entries, ``classes``, ``per_class``, ``confusion_matrix``, ``distances`` of the
            ``right`` and the ``wrong`` answers, ``timing`` and ``versions``.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "n_test": self.n_test,
            "n_skipped": len(self.skipped),
            **self.setting,
            "classes": self.classes.tolist(),
            "per_class": self.per_class,
            "confusion_matrix": self.confusion_matrix.tolist(),
            "distances": {
                "right": summarise_distances(self.distances[self.correct]).to_dict(),
                "wrong": summarise_distances(self.distances[~self.correct]).to_dict(),
            },
            "timing": self._timing(),
            "versions": _versions(),
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Return `to_dict` as JSON, and write it to `path`, atomically, if one is given."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        if path is not None:
            try:
                write_text(path, text + "\n")
            except OSError as error:
                raise InvalidInputError(
                    f"the report cannot be written to {str(path)!r}: {error.strerror or error}"
                ) from error
        return text

    def __str__(self) -> str:
        low, high = self.accuracy_interval
        s = self.setting
        right, wrong = self.distances[self.correct], self.distances[~self.correct]
        lines = [
            f"accuracy {self.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}), "
            f"{int(self.correct.sum())} of {self.n_test} images",
            f"model {s['model'] or '-'}, stage {s['stage'] or '-'}, dim {s['dim']}; store {s['store']}, "
            f"metric {s['metric']}, k {s['k']}, weights {s['weights']}, {s['n_train']} stored vectors",
            f"median distance to the nearest: right {_median(right)}, wrong {_median(wrong)}",
        ]
        if s.get("plan"):
            plan = s["plan"]
            lines.append(f"encoded in {plan['precision']} on {plan['device']}")
        if self.skipped:
            lines.append(f"{len(self.skipped)} images could not be decoded and were skipped")
        lines += ["", *_table(self.per_class), "", *self._timing_lines()]
        return "\n".join(lines)

    def _timing(self) -> dict[str, Any]:
        parts = {
            name: {
                "seconds": timing.seconds.get(part, 0.0),
                "images": timing.images.get(part, 0),
                "images_per_second": timing.rate(part),
            }
            for name, part, timing in self._timed()
        }
        return {
            "fit_s": self.fit_seconds,
            "encode_s": self.timing.seconds.get("encode", 0.0),
            "search_s": self.timing.seconds.get("search", 0.0),
            "total_s": self.fit_seconds + self.seconds,
            "parts": parts,
        }

    def _timed(self) -> list[tuple[str, str, Timing]]:
        of_fit = [(f"fit_{part}", part, self.fit_timing) for part in _PARTS if part in self.fit_timing.images]
        return of_fit + [(part, part, self.timing) for part in _PARTS if part in self.timing.images]

    def _timing_lines(self) -> list[str]:
        rows = [f"{'time':<12} {'seconds':>9} {'images/s':>9}"]
        for name, part, timing in self._timed():
            rate = timing.rate(part)
            shown = f"{rate:>9.1f}" if rate is not None else f"{'-':>9}"
            rows.append(f"{name.replace('_', ' '):<12} {timing.seconds.get(part, 0.0):>9.2f} {shown}")
        return rows


def _table(per_class: list[dict[str, Any]]) -> list[str]:
    width = max(5, *(len(str(row["class"])) for row in per_class))
    rows = [f"{'class':<{width}} {'precision':>9} {'recall':>7} {'f1':>7} {'support':>8}"]
    rows += [
        f"{row['class']!s:<{width}} {row['precision']:>9.4f} {row['recall']:>7.4f} "
        f"{row['f1']:>7.4f} {row['support']:>8d}"
        for row in per_class
    ]
    return rows


def _median(distances: FloatArray) -> str:
    return f"{np.median(distances):.4g}" if len(distances) else "-"


def _versions() -> dict[str, str]:
    found = {"clipretrieval": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
