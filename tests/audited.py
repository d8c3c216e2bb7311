"""Reports of audits and decisions on them, as the tests of pages and of what is applied share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipretrieval import AuditReport, CascadeClassifier, RetrievalClassifier
from clipretrieval.auditing import Decisions, Finding, ImageDecision
from clipretrieval.images import RawImage, content_id

SHADES = {"cat": [10, 20, 30, 240], "dog": [210, 220, 230, 40]}
"""Dark pictures and bright ones, of which the last of each lies in the other's folder."""


class Shade:
    """A user's own encoder, of few dimensions: the mean of each channel."""

    dim = 3
    fingerprint = {"encoder": "Shade", "dim": 3}

    def encode(self, images: Any) -> Any:
        return np.stack([np.asarray(image).mean((0, 1)) for image in images]).astype(np.float32)


def draw(path: Path, shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (shade, shade, 40)).save(path)
    return path


def draw_folder(root: Path) -> Path:
    """Write the pictures, a folder for each class."""
    for label, shades in SHADES.items():
        for shade in shades:
            draw(root / label / f"{shade}.png", shade)
    return root


def file_id(path: Path) -> str:
    return content_id(RawImage(0, str(path)))


def fingerprint_of(classifier: RetrievalClassifier | CascadeClassifier) -> dict[str, Any]:
    """What an audit says of a classifier, as far as it is compared."""
    single = getattr(classifier, "exits_", [classifier])[-1]
    manifest = single.store_.read_manifest()
    return {key: manifest[key] for key in ("encoder", "metric", "normalize")}


def fitted(folder: Path, store: Any = "faiss", encoder: Any = None, **params: Any) -> RetrievalClassifier:
    return RetrievalClassifier(encoder or Shade(), store, k=1, **params).fit(folder)


def relabel(path: Path, before: Any, label: Any) -> ImageDecision:
    return ImageDecision("relabel", file_id(path), str(path), before, label)


def forget(path: Path, before: Any) -> ImageDecision:
    return ImageDecision("forget", file_id(path), str(path), before)


def keep(path: Path, before: Any) -> ImageDecision:
    return ImageDecision("keep", file_id(path), str(path), before)


def decided(classifier: Any, *decisions: ImageDecision) -> Decisions:
    return Decisions({} if classifier is None else fingerprint_of(classifier), decisions)


def report_of(findings: list[Finding], classes: tuple[Any, ...], **options: Any) -> AuditReport:
    counts = {"tiny": 0}
    for each in findings:
        counts[each.kind] = counts.get(each.kind, 0) + 1
    return AuditReport(tuple(findings), 8, classes, options.pop("fingerprint", {}), counts=counts, **options)


def stored(classifier: Any) -> dict[str, Any]:
    """The labels of what a classifier's store holds, by id."""
    single = getattr(classifier, "exits_", [classifier])[-1]
    return {
        name: label
        for listing in single.store_.scan()
        for name, label in zip(listing.ids.tolist(), listing.labels.tolist(), strict=True)
    }


def files(folder: Path) -> dict[str, str]:
    """The contents of all files below a folder, by place."""
    return {
        path.relative_to(folder).as_posix(): file_id(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
