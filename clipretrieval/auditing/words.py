"""What the kinds of findings are called, and what they mean."""

from __future__ import annotations

from clipretrieval.auditing.estimate import Estimate

__all__ = ["KIND_TITLES", "KIND_WORDS", "estimate_words"]

KIND_TITLES = {
    "label": "labels that are probably wrong",
    "duplicate": "images that are equal or nearly",
    "leak": "images of both sets that are equal or nearly",
    "outlier": "images unlike all others",
    "harm": "stored images that mislead answers to test images",
    "confusion": "classes that are confused",
    "broken": "files that cannot be decoded",
    "tiny": "tiny images",
    "blank": "blank images",
}
KIND_WORDS = {
    "label": "Beside each image its nearest neighbours. Framed solid: of the label that it should have; "
    "dashed: of the one that it has.",
    "duplicate": "Images of a group are equal, or nearly. Equal images of two classes cannot both be right.",
    "leak": "Images of a group lie in both sets. Accuracy on such test images says nothing about others.",
    "outlier": "Images that have no like among the others, and beside each the nearest there is.",
    "harm": "Stored images by which test images are answered incorrectly, and beside each those test images.",
    "confusion": "Images of the first class are taken for the second.",
    "broken": "Nothing can be learned from them, and they are not stored.",
    "tiny": "Images of so few pixels that little can be seen in them.",
    "blank": "Images of one colour, or nearly.",
}


def estimate_words(estimate: Estimate) -> str:
    """Return how many findings of a kind are real, in a sentence."""
    return (
        f"Probably about {estimate.expected:,.0f} of {estimate.checked:,} images "
        f"(between {estimate.low:,.0f} and {estimate.high:,.0f}; {estimate.method})."
    )
