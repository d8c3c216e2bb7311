"""What the kinds of findings are called, and what they mean."""

from __future__ import annotations

from clipretrieval.auditing.estimate import Estimate

__all__ = ["KIND_TITLES", "KIND_WORDS", "doubt_words", "estimate_words"]

KIND_TITLES = {
    "label": "labels that are probably wrong",
    "duplicate": "duplicates and near duplicates",
    "leak": "leaks: test images that are also among the audited ones",
    "outlier": "images unlike all others",
    "harm": "stored images that cause mistakes on test images",
    "confusion": "confused classes",
    "broken": "files that cannot be decoded",
    "tiny": "tiny images",
    "blank": "blank images",
}
KIND_WORDS = {
    "label": "Next to each image are its nearest neighbors. Solid frame: they have the suggested "
    "label; dashed frame: they have the same label as the image.",
    "duplicate": "The images of a group are identical, or nearly. Identical images of two classes "
    "cannot both be correct.",
    "leak": "The images of a group are among the audited images and among the test images, identical or "
    "nearly. Accuracy on such test images says nothing about others.",
    "outlier": "Images unlike all others, and next to each its nearest neighbors.",
    "harm": "Stored images whose votes cause mistakes on test images, and next to each those test images.",
    "confusion": "Images of the first class are classified as the second.",
    "broken": "They cannot be read, and are not stored.",
    "tiny": "Images with so few pixels that little can be seen.",
    "blank": "Images of a single color, or nearly.",
}


def doubt_words(accuracy: float) -> str:
    """Return what to think of wrong labels that were found by a head that knows the classes badly."""
    return (
        f"these are mostly not wrong labels: without an image and its label, the head predicts the label of "
        f"{accuracy:.0%} of the images only, so the encoder does not separate the classes well. Audit with a "
        "better encoder or a later stage, unless many labels are wrong indeed"
    )


def estimate_words(estimate: Estimate) -> str:
    """Return how many findings of a kind are probably real, in a sentence."""
    return (
        f"Probably about {estimate.expected:,.0f} of {estimate.checked:,} images "
        f"(between {estimate.low:,.0f} and {estimate.high:,.0f}; {estimate.method})."
    )
