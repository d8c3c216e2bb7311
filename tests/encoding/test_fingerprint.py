"""Fingerprints differ exactly where vectors do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clipretrieval import StagedEncoder
from clipretrieval.encoding import differences


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "late"},
        {"stage": "layer2"},
        {"image_size": 96},
    ],
)
def test_a_change_of_the_vectors_changes_the_fingerprint(tiny_model, change):
    """Stage and size are part of it."""
    base = StagedEncoder(tiny_model, stage="mid").fingerprint
    assert StagedEncoder(tiny_model, **{"stage": "mid", **change}).fingerprint != base


def test_other_weights_are_told_apart(tiny_model, other_model):
    """Two models of one architecture differ in their weights alone."""
    found = differences(
        StagedEncoder(tiny_model, stage="mid").fingerprint,
        StagedEncoder(other_model, stage="mid").fingerprint,
    )
    assert len(found) == 1
    assert found[0].startswith("weights: stored 'sha256:")


def test_place_precision_device_and_batch_do_not_matter(tiny_model, tmp_path):
    """A copy of the model elsewhere, run otherwise, has the same fingerprint."""
    base = StagedEncoder(tiny_model, stage="mid").fingerprint
    copy = shutil.copytree(Path(tiny_model.removeprefix("local-dir:")), tmp_path / "copy")
    moved = StagedEncoder(f"local-dir:{copy}", stage="mid", precision="fp32", device="cpu", batch_size=3)
    assert moved.fingerprint == base


def test_weights_behind_the_stage_do_not_matter(tmp_path):
    """Only the tensors that run are hashed, so what lies behind the stage does not count."""
    stem = StagedEncoder("RN50", None, "stem", seed=0).fingerprint
    assert stem != StagedEncoder("RN50", None, "stem", seed=1).fingerprint
    assert stem == StagedEncoder("RN50", None, "stem", seed=0).fingerprint
    deeper = StagedEncoder("RN50", None, "layer1", seed=0).fingerprint
    assert deeper["weights"] != stem["weights"]


def test_pixel_stage_is_the_same_for_every_model(tiny_model):
    """No weights run at the pixel stage, so any model's index serves any other."""
    assert (
        StagedEncoder(tiny_model, stage="pixel").fingerprint
        == StagedEncoder("RN101", None, "pixel").fingerprint
    )


def test_differences_name_what_differs():
    """Nested entries are named by their path, missing ones as nothing."""
    assert differences({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}) == [
        "b.c: stored 2, given 4",
        "e: stored nothing, given 5",
    ]


def test_differences_begin_with_what_a_caller_chose():
    """Hashes, which tell a reader nothing, come last and are shortened."""
    stored = {"dim": 8, "stage": "mid", "weights": f"sha256:{'a' * 64}"}
    assert differences(stored, {"dim": 9, "stage": "late", "weights": f"sha256:{'b' * 64}"}) == [
        "stage: stored 'mid', given 'late'",
        "dim: stored 8, given 9",
        "weights: stored 'sha256:aaaaaaaaaaaa…', given 'sha256:bbbbbbbbbbbb…'",
    ]
