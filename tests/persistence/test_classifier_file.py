"""classifier.json: its checksum, its values, and what is put in its place."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from saved_files import checksum, rewrite

from clipretrieval import ClipRetrievalError, InvalidInputError, RetrievalClassifier, StoreCorruptedError

POINTS, LABELS = np.eye(4, dtype=np.float32), [0, 1, 0, 1]


@pytest.fixture
def saved(tmp_path):
    """The file of a classifier that was saved."""
    RetrievalClassifier(weights="softmax", temperature=50.0).fit(POINTS, LABELS).save(tmp_path / "saved")
    return tmp_path / "saved" / "classifier.json"


def test_the_checksum_is_of_the_other_fields(saved):
    """It is the SHA-256 of their JSON with sorted keys and no white space, and the version is 3."""
    content = json.loads(saved.read_text())
    assert content["format_version"] == 3
    assert content.pop("sha256") == checksum(content)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"temperature": 50.0', '"temperature": 20.0'),
        ('"n_features_in": 4', '"n_features_in": 5'),
        ('"k": 1', '"k": 2'),
        ('"format_version": 3', '"format_version": 1'),
        ('"temperature": 50.0', '"temperature": Infinity'),
        ('"temperature": 50.0', '"temperature": 1e999'),
        ('"temperature": 50.0', '"temperature": NaN'),
        ('"k": 1', '"k": 1,\n    "k": 1'),
        ('"sha256"', '"sha512"'),
    ],
)
def test_a_changed_value_is_refused(saved, before, after):
    """Whichever value was changed without the checksum, loading says that the file is damaged."""
    text = saved.read_text()
    assert before in text
    saved.write_text(text.replace(before, after))
    with pytest.raises(StoreCorruptedError, match=r"classifier\.json is damaged"):
        RetrievalClassifier.load(saved.parent)


def test_every_change_of_a_byte_is_refused_or_changes_nothing(saved):
    """No byte of the file can be changed so that another classifier is loaded."""
    original, expected = saved.read_bytes(), RetrievalClassifier.load(saved.parent).get_params()
    generator = np.random.default_rng(0)
    for place in range(len(original)):
        changed = bytearray(original)
        changed[place] ^= 1 << int(generator.integers(8))
        saved.write_bytes(changed)
        try:
            loaded = RetrievalClassifier.load(saved.parent)
        except ClipRetrievalError:
            continue
        assert loaded.get_params() == expected
        assert loaded.predict(POINTS).tolist() == LABELS


def test_a_file_of_version_1_still_opens(saved):
    """Files without a checksum, as earlier versions wrote them, open as before."""
    written = json.loads(saved.read_text())["params"]
    voting = {name: value for name, value in written.items() if name not in ("head", "priors")}
    rewrite(saved, format_version=1, params=voting)
    assert "sha256" not in json.loads(saved.read_text())
    assert RetrievalClassifier.load(saved.parent).temperature == 50.0
    params = {"k": 1, "weights": "uniform", "temperature": 0.07, "metric": "l2"}
    rewrite(saved, params=params)
    loaded = RetrievalClassifier.load(saved.parent)
    assert (loaded.normalize, loaded.predict(POINTS).tolist()) == (False, LABELS)
    rewrite(saved, params=params | {"temperature": -1})
    with pytest.raises(StoreCorruptedError, match=r"params\.temperature must be a finite number above 0"):
        RetrievalClassifier.load(saved.parent)


def test_a_file_of_version_2_still_opens(saved):
    """Files that name no head open with votes, and may not name one."""
    written = json.loads(saved.read_text())["params"]
    voting = {name: value for name, value in written.items() if name not in ("head", "priors")}
    rewrite(saved, format_version=2, params=voting)
    loaded = RetrievalClassifier.load(saved.parent)
    assert (loaded.head, loaded.priors, loaded.temperature) == ("votes", "equal", 50.0)
    rewrite(saved, params=written)
    with pytest.raises(StoreCorruptedError, match="params should not have, or lacks, 'head', 'priors'"):
        RetrievalClassifier.load(saved.parent)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_or_a_device_is_not_waited_for(saved):
    """Loading and saving end with an error where classifier.json is a pipe, endless or enormous."""
    fitted = RetrievalClassifier.load(saved.parent)
    saved.unlink()
    os.mkfifo(saved)
    with pytest.raises(ClipRetrievalError, match=r"classifier\.json"):
        RetrievalClassifier.load(saved.parent)
    saved.unlink()
    saved.symlink_to("/dev/zero")
    with pytest.raises(ClipRetrievalError, match=r"classifier\.json"):
        RetrievalClassifier.load(saved.parent)
    saved.unlink()
    with open(saved, "wb") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(StoreCorruptedError, match="bytes"):
        RetrievalClassifier.load(saved.parent)
    fitted.save(saved.parent)
    assert RetrievalClassifier.load(saved.parent).temperature == 50.0


def test_wrong_paths_are_refused(tmp_path):
    """Paths that no system takes are an error of ours, in save and load."""
    fitted = RetrievalClassifier().fit(POINTS, LABELS)
    for path in ("", "a\0b", "x" * 5000, 5, None):
        for call in (fitted.save, RetrievalClassifier.load):
            with pytest.raises(InvalidInputError, match="path"):
                call(path)
    fitted.save(tmp_path / "kept")
    for wrong in ({"encoder": 5}, {"store": "faiss"}, {"store": 5}):
        with pytest.raises(InvalidInputError, match=next(iter(wrong))):
            RetrievalClassifier.load(tmp_path / "kept", **wrong)
    with pytest.raises(InvalidInputError, match="k must be"):
        RetrievalClassifier.load(tmp_path / "kept").set_params(k="three").save(tmp_path / "kept")
    for name in ("allow_remote", "overwrite"):
        call = RetrievalClassifier.load if name == "allow_remote" else fitted.save
        with pytest.raises(InvalidInputError, match=re.escape(f"{name} must be True or False")):
            call(tmp_path, **{name: "no"})
