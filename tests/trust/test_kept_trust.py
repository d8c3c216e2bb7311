"""Promises are saved with a classifier, and are the same in another process."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from blobs import blobs, named
from saved_files import rewrite
from warm_process import run_warm

from clipretrieval import RetrievalClassifier
from clipretrieval.errors import StoreCorruptedError
from clipretrieval.explanation import explain_stream
from clipretrieval.persistence import classifier_file
from clipretrieval.trust.calibration_images import CalibrationImages


def held_out_files(folder):
    return sorted(path.name for path in folder.glob("*held-out-*"))


def answers(classifier, vectors):
    labels, sets = classifier.predict_set(vectors, 0.9)
    told = [each.prediction_set for each in explain_stream(classifier, vectors, coverage=0.9)]
    return [labels.tolist(), sets.tolist(), told, classifier.predict_proba(vectors).tolist()]


@pytest.mark.usefixtures("few_features")
@pytest.mark.parametrize("score", ["aps", "raps"])
@pytest.mark.parametrize("method", ["temperature", "isotonic"])
@pytest.mark.parametrize("arguments", [{"head": "fused"}, {"head": "votes", "k": 5}])
def test_a_loaded_classifier_answers_the_same(
    score, method, arguments, fitted_on, held_out, others, asked, tmp_path, monkeypatch
):
    """Without looking up held-out images anew."""
    classifier = RetrievalClassifier(unknown="?", **arguments).fit(fitted_on[0], named(fitted_on[1]))
    classifier.calibrate(others[0], named(others[1]), method=method)
    classifier.conformalize(held_out[0], named(held_out[1]), score=score, class_conditional=True)
    expected = answers(classifier, asked[0])
    classifier.save(tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "classifier.json").read_text())["format_version"] == 5
    loaded = RetrievalClassifier.load(tmp_path / "kept")
    assert loaded.conformal_ == classifier.conformal_
    if score == "aps":  # the penalty of the other is chosen anew
        monkeypatch.setattr(CalibrationImages, "parts", None)
    assert answers(loaded, asked[0]) == expected
    assert "?" in expected[0]


def test_it_answers_the_same_in_another_process_after_a_change(trusted, asked, tmp_path):
    """What was computed before the change is not used there."""
    np.save(tmp_path / "asked.npy", asked[0])
    trusted.save(tmp_path / "kept")
    program = (
        "import sys, json, numpy; from clipretrieval import RetrievalClassifier as R\n"
        f"c = R.load({str(tmp_path / 'kept')!r}); x = numpy.load({str(tmp_path / 'asked.npy')!r})\n"
        "c.partial_fit(x[:100] + 0.01, c.predict(x[:100]).tolist()); c.save(sys.argv[1])\n"
        "print(json.dumps([c.predict_set(x, 0.9).sets.tolist(), c.calibration_.temperature]))"
    )
    done = run_warm(["-c", program, tmp_path / "kept"])
    assert done.returncode == 0, done.stderr
    sets, temperature = json.loads(done.stdout)
    trusted.partial_fit(asked[0][:100] + np.float32(0.01), trusted.predict(asked[0][:100]).tolist())
    assert trusted.predict_set(asked[0], 0.9).sets.tolist() == sets
    assert trusted.calibration_.temperature == temperature
    assert RetrievalClassifier.load(tmp_path / "kept").predict_set(asked[0], 0.9).sets.tolist() == sets


def test_one_file_is_there_at_a_time(trusted, asked, tmp_path, monkeypatch):
    """A save that fails leaves the one before; one that succeeds removes it, and what a killed one left."""
    folder = tmp_path / "kept"
    trusted.save(folder)
    (before,) = held_out_files(folder)
    expected = answers(trusted, asked[0])
    with monkeypatch.context() as patched:
        patched.setattr(classifier_file, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trusted.save(folder)
    assert held_out_files(folder) == [before]
    assert answers(RetrievalClassifier.load(folder), asked[0]) == expected
    (folder / "held-out-0123abcd").write_bytes(b"half")
    (folder / f".{before}.0123.tmp").write_bytes(b"half")
    trusted.save(folder)
    (after,) = held_out_files(folder)
    assert after not in (before, "held-out-0123abcd")
    trusted.fit(asked[0], named(asked[1]), overwrite=True).save(folder)
    assert held_out_files(folder) == []
    assert json.loads((folder / "classifier.json").read_text())["format_version"] == 3


def test_unknown_alone_is_saved(fitted, tmp_path):
    fitted.set_params(unknown="?", max_turned_away=0.2).save(tmp_path / "kept")
    loaded = RetrievalClassifier.load(tmp_path / "kept")
    assert (loaded.unknown, loaded.max_turned_away, loaded.conformal_) == ("?", 0.2, None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-4], "vectors of|reshape"),
        (lambda content: content[:-4] + b"\x00\x00\xc0\x7f", "not finite"),
        (lambda content: content.replace(b'"format_version": 1', b'"format_version": 2'), "version 2"),
        (lambda content: content.replace(b'"score": "lac"', b'"score": "lax"'), "score must be"),
        (lambda content: content.replace(b'"method": "temperature"', b'"method": "?"'), "method must be"),
        (lambda content: content.replace(b'"rows": [0, ', b'"rows": [1, '), "a row comes twice"),
        (lambda content: content.replace(b'"labels": ["', b'"labels": [7, "'), "more ids|mixed|one type"),
        (lambda content: content.replace(b'"temperature": ', b'"temperature": -'), "temperature must be"),
        (lambda content: content.replace(b"clipretrieval.trust", b"something.else"), "its format is"),
        (lambda content: b"nothing of the kind", "damaged"),
        (lambda content: b"[]\n", "damaged"),
    ],
)
def test_what_somebody_else_has_written_is_refused(damage, message, trusted, tmp_path):
    """Also with a checksum that is right."""
    trusted.save(tmp_path)
    (name,) = held_out_files(tmp_path)
    content = damage((tmp_path / name).read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreCorruptedError, match=r"held-out-.* is damaged: .* checksum"):
        RetrievalClassifier.load(tmp_path)
    kept = json.loads((tmp_path / "classifier.json").read_text())["trust"]
    digest = hashlib.sha256(content).hexdigest()
    rewrite(tmp_path / "classifier.json", trust=kept | {"sha256": digest})
    with pytest.raises(StoreCorruptedError, match=message):
        RetrievalClassifier.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../x"}, r"trust.file is '../x'"),
        ({"file": "held-out-01234567"}, "lacks its held-out images, held-out-01234567"),
        ({"unknown": ["a"]}, "trust.unknown must be a label"),
        ({"max_turned_away": 2}, "trust.max_turned_away must be"),
        ({"sha256": None}, "trust.sha256 must be a text"),
        ({"more": 1}, "should not have"),
    ],
)
def test_a_file_that_names_something_else(change, message, trusted, tmp_path):
    trusted.save(tmp_path)
    kept = json.loads((tmp_path / "classifier.json").read_text())["trust"]
    rewrite(tmp_path / "classifier.json", trust=kept | change)
    with pytest.raises(StoreCorruptedError, match=message):
        RetrievalClassifier.load(tmp_path)


def test_integers_and_floats_come_back_as_they_were(tmp_path, held_out):
    for kind, unknown in ((int, -1), (float, -1.0)):
        vectors, codes = blobs(60, 1)
        classifier = RetrievalClassifier(unknown=unknown).fit(vectors, [kind(code) for code in codes])
        classifier.conformalize(held_out[0], [kind(code) for code in held_out[1]])
        classifier.save(tmp_path / kind.__name__)
        found = RetrievalClassifier.load(tmp_path / kind.__name__).predict(vectors[:3] + 50)
        assert found.tolist() == [unknown] * 3
        assert found.dtype == np.dtype(kind)
