"""A cascade's fit that is killed, and gone on with."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from cascades import crops, quietly
from warm_process import run_warm

from clipretrieval import CascadeClassifier, StagedEncoder

STAGES = ("stem", "layer2", "late")
PROGRAM = """
import os, signal, sys
from cascades import crops
from clipretrieval import CascadeClassifier, StagedEncoder
model, path, end = sys.argv[1], sys.argv[2], int(sys.argv[3])
def images():
    for place, (image, label) in enumerate(zip(*crops(120, 1))):
        if place == end:
            os.kill(os.getpid(), signal.SIGKILL)
        yield image, label
encoder = StagedEncoder(model, precision="fp32", batch_size=8)
options = {"head": "discriminant", "store": "faiss", "store_options": {"path": path}}
CascadeClassifier(encoder, ("stem", "layer2", "late"), **options).fit(images(), flush_every=10)
"""


def contents(cascade):
    """Return the records and classes of each exit."""
    found = []
    for each in cascade.exits_:
        ids = sorted(name for listing in each.store_.scan() for name in listing.ids.tolist())
        records = each.store_.get(ids)
        found.append((records.ids.tolist(), records.labels.tolist(), records.vectors.tolist()))
        found.append(each.store_.read_manifest()["classes"])
    return found


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_fit_is_gone_on_with(tmp_path, tiny_model):
    """Killed amid its images, resume ends as an undisturbed fit."""
    end = 67
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{PROGRAM}"
    done = run_warm(["-c", program, tiny_model, str(tmp_path / "killed"), str(end)])
    assert done.returncode == -signal.SIGKILL
    encoder = StagedEncoder(tiny_model, precision="fp32", batch_size=8)
    given, asked = crops(120, 1), crops(30, 3)
    killed, whole = (
        CascadeClassifier(
            encoder,
            STAGES,
            head="discriminant",
            store="faiss",
            store_options={"path": tmp_path / name},
        )
        for name in ("killed", "whole")
    )
    killed.fit(*given, resume=True)
    whole.fit(*given)
    assert contents(killed) == contents(whole)
    assert killed.fit_report_.already_there >= end - 60
    np.testing.assert_allclose(
        quietly(killed.predict_proba, asked.images), quietly(whole.predict_proba, asked.images), atol=1e-6
    )
    for cascade in (killed, whole):
        for each in cascade.exits_:
            each.store_.close()
