"""Decisions on an audit, carried out in classifiers and in folders."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import Shade, decided, draw, draw_folder, file_id, files, fitted, forget, keep, relabel, stored
from warm_process import run_warm

from clipretrieval import CascadeClassifier, RetrievalClassifier, StagedEncoder, ZeroShotClassifier
from clipretrieval.auditing import Decisions, Finding, ImageDecision, apply_decisions, audit
from clipretrieval.errors import FingerprintMismatchError, InvalidInputError
from clipretrieval.images import scan_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "pictures")


@pytest.mark.parametrize("store", ["faiss", "chroma"])
def test_what_is_decided_is_done_once(folder: Path, store: str) -> None:
    """Images are relabeled, forgotten and moved; the second time there is nothing left to do."""
    classifier = fitted(folder, store)
    bright, dark = folder / "cat/240.png", folder / "dog/40.png"
    decisions = decided(
        classifier,
        relabel(bright, "cat", "dog"),
        relabel(dark, "dog", "bird"),
        forget(folder / "cat/30.png", "cat"),
        keep(folder / "cat/20.png", "cat"),
    )
    ids, before, labels = [each.id for each in decisions.decisions], files(folder), stored(classifier)
    planned = apply_decisions(classifier, decisions, folder, dry_run=True)
    assert (files(folder), stored(classifier)) == (before, labels)
    assert planned.lines()[0] == f"would relabel {bright}: cat → dog"
    done = apply_decisions(classifier, decisions, folder)
    assert (planned.moved, planned.relabeled, planned.forgotten) == (
        done.moved,
        done.relabeled,
        done.forgotten,
    )
    assert str(planned) == "would be: 2 relabeled, 1 forgotten, 1 kept, 3 files moved"
    assert str(done) == "2 relabeled, 1 forgotten, 1 kept, 3 files moved"
    assert stored(classifier) == {
        **{name: label for name, label in labels.items() if name != ids[2]},
        ids[0]: "dog",
        ids[1]: "bird",
    }
    moved = {"cat/240.png": "dog/240.png", "dog/40.png": "bird/40.png", "cat/30.png": "_removed/cat/30.png"}
    after = files(folder)
    assert after == {moved.get(place, place): content for place, content in before.items()}
    answers = classifier.predict([folder / "dog/240.png", folder / "bird/40.png"])
    assert answers.tolist() == ["dog", "bird"]
    assert classifier.explain([folder / "dog/240.png"])[0].neighbors[0].source == str(folder / "dog/240.png")
    assert scan_folder(folder).classes == ("bird", "cat", "dog")
    again = apply_decisions(classifier, decisions, folder)
    assert str(again) == "1 kept, 3 as decided already"
    assert files(folder) == after


def test_what_has_changed_since_is_named_and_left_alone(folder: Path) -> None:
    """Another label, an image that is gone, a file that is gone or another: the rest is done."""
    classifier = fitted(folder)
    relabeled, forgotten, lost, replaced, whole = (
        folder / place for place in ("cat/10.png", "cat/20.png", "cat/30.png", "dog/210.png", "dog/220.png")
    )
    decisions = decided(
        classifier,
        relabel(relabeled, "cat", "dog"),
        relabel(forgotten, "cat", "dog"),
        relabel(lost, "cat", "dog"),
        forget(replaced, "dog"),
        forget(whole, "dog"),
    )
    ids = [str(each.id) for each in decisions.decisions]
    classifier.relabel(ids[0], "bird")
    classifier.forget(ids[1])
    lost.unlink()
    draw(replaced, 99)
    done = apply_decisions(classifier, decisions, folder)
    assert [(str(each), reason) for each, reason in done.skipped] == [
        (str(relabeled), "it is labeled 'bird' now, and was 'cat' when it was audited"),
        (str(forgotten), "it is not stored any more"),
        (str(lost), f"there is no file {str(lost)!r} any more"),
        (str(replaced), f"the file {str(replaced)!r} holds another image now"),
    ]
    assert stored(classifier)[ids[0]] == "bird"
    assert stored(classifier)[ids[2]] == "dog"
    assert {ids[3], ids[4]}.isdisjoint(stored(classifier))
    assert relabeled.exists()
    assert file_id(replaced) != ids[3]
    assert files(folder / "_removed") == {"dog/220.png": ids[4]}


def test_another_classifier_is_refused(folder: Path, tmp_path: Path) -> None:
    """By its encoder, by its metric, and where it holds none of the images."""
    classifier = fitted(folder)
    decisions = decided(classifier, relabel(folder / "cat/240.png", "cat", "dog"))
    numbered = RetrievalClassifier(k=1).fit(np.eye(3, dtype=np.float32), [1, 2, 3])
    for other in (numbered, fitted(folder, metric="cosine")):
        before = stored(other)
        with pytest.raises(FingerprintMismatchError, match="the audit of another classifier"):
            apply_decisions(other, decisions, folder)
        assert stored(other) == before
    elsewhere = tmp_path / "elsewhere"
    draw(elsewhere / "cat/1.png", 1), draw(elsewhere / "dog/2.png", 2)
    with pytest.raises(FingerprintMismatchError, match="none of the 1 images"):
        apply_decisions(fitted(elsewhere), decisions, folder)
    assert (folder / "cat/240.png").exists()
    with pytest.raises(InvalidInputError, match="the type int, but the classifier was fitted on str"):
        apply_decisions(classifier, decided(classifier, relabel(folder / "cat/240.png", "cat", 1)))


@pytest.mark.parametrize("store", ["faiss", "chroma"])
def test_what_was_never_there_is_not_forgotten(folder: Path, tmp_path: Path, store: str) -> None:
    """Decisions that only forget are refused by a store that never held the images, and not by their own."""
    classifier = fitted(folder, store)
    decisions = decided(
        classifier, forget(folder / "cat/240.png", "cat"), forget(folder / "cat/30.png", "cat")
    )
    elsewhere = tmp_path / "elsewhere"
    draw(elsewhere / "cat/1.png", 1), draw(elsewhere / "dog/2.png", 2)
    with pytest.raises(FingerprintMismatchError, match="none of the 2 images"):
        apply_decisions(fitted(elsewhere), decisions)
    assert str(apply_decisions(classifier, decisions)) == "2 forgotten"
    draw(folder / "dog/7.png", 7)
    classifier.partial_fit(scan_folder(folder / "dog").paths, ["dog"] * len(files(folder / "dog")))
    after = stored(classifier)
    assert str(apply_decisions(classifier, decisions)) == "2 as decided already"
    assert stored(classifier) == after


def test_only_files_are_moved_without_a_classifier(folder: Path) -> None:
    """What is done to a folder alone is something."""
    classifier = fitted(folder)
    decisions = decided(classifier, forget(folder / "cat/240.png", "cat"))
    assert str(apply_decisions(None, decisions, folder)) == "1 file moved"
    assert str(apply_decisions(None, Decisions({}, ()), folder)) == "nothing to do"


def test_a_contradiction_names_both_files() -> None:
    """Two copies of one image cannot be of two classes; whoever reads it knows which lines to look at."""
    one = ImageDecision("relabel", "0" * 32, "cat/a.png", "cat", "dog")
    for other in (
        ImageDecision("relabel", "0" * 32 + "-2", "bird/b.png", "bird", "fox"),
        ImageDecision("forget", "0" * 32 + "-2", "bird/b.png", "bird"),
    ):
        with pytest.raises(
            InvalidInputError, match=r"relabel cat/a\.png as dog.*bird/b\.png.*remove one"
        ) as caught:
            Decisions({}, (one, other))
        assert "leave one" not in str(caught.value)
    assert len(Decisions({}, (one, one)).decisions) == 1


@pytest.mark.filterwarnings("ignore:.*given under several labels:clipretrieval.ClipRetrievalWarning")
def test_what_an_audit_has_found_can_be_applied(folder: Path) -> None:
    """Of a classifier, or of its folder by the same encoder, where copies have ids of their own."""
    (folder / "dog/copy.png").write_bytes((folder / "cat/10.png").read_bytes())
    classifier = fitted(folder)
    report = audit(folder, encoder=Shade(), parts=["duplicate"])
    copies = [each for each in report.of("duplicate") if each.id != each.source and each.score == 1]
    assert len({each.id for each in copies}) == 2
    [extra] = [each for each in copies if str(each.source).endswith("copy.png")]
    decisions = Decisions(report.fingerprint, [ImageDecision.on(extra, "forget", "cat")])
    done = apply_decisions(classifier, decisions, folder)
    assert (len(done.relabeled), len(done.moved)) == (1, 1)
    assert stored(classifier)[file_id(folder / "cat/10.png")] == "cat"
    own = audit(classifier, parts=["outlier"])
    assert own.fingerprint["encoder"] == report.fingerprint["encoder"]
    found = Finding("outlier", file_id(folder / "cat/20.png"), "cat")
    assert apply_decisions(
        classifier, Decisions(own.fingerprint, [ImageDecision.on(found, "forget")])
    ).forgotten
    with pytest.raises(InvalidInputError, match="about a test image"):
        ImageDecision.on(Finding("leak", "a", "cat", where="test"), "forget")
    with pytest.raises(InvalidInputError, match="neither an id nor a source"):
        ImageDecision.on(Finding("confusion", None, "cat", suggested="dog"), "keep")


@pytest.mark.parametrize("kind", ["float", "bool", "int"])
def test_labels_keep_their_type(folder: Path, kind: str) -> None:
    """Numbers that JSON cannot tell apart by itself are what was fitted, also beyond 53 bits."""
    zero, one = {"float": (0.0, 1.0), "bool": (False, True), "int": (2**60, 2**60 + 1)}[kind]
    paths = sorted(folder.rglob("*.png"))
    labels = [zero if path.parent.name == "cat" else one for path in paths]
    classifier = RetrievalClassifier(Shade(), k=1).fit(paths, labels)
    written = decided(classifier, relabel(folder / "cat/240.png", zero, one)).to_json(folder / "d.json")
    assert json.loads(written)["decisions"][0]["label"] == one
    done = apply_decisions(classifier, folder / "d.json", folder)
    assert len(done.relabeled) == 1
    [answer] = classifier.predict(folder / "cat/240.png").tolist()
    assert (answer, type(answer)) == (one, type(one))
    [(_, reason)] = done.skipped  # its folders are not named as its classes are
    assert "does not lie in a folder of its class" in reason


def test_a_cascade_is_changed_at_every_exit(folder: Path, tiny_model: str) -> None:
    """Also where its first exits keep no vectors, and files are moved that they are encoded from."""
    cascade = CascadeClassifier(
        StagedEncoder(tiny_model), ("stem", "late"), head="discriminant", keep_vectors=False
    ).fit(folder)
    decisions = decided(
        cascade, relabel(folder / "cat/240.png", "cat", "dog"), forget(folder / "dog/40.png", "dog")
    )
    done = apply_decisions(cascade, decisions, folder)
    assert (len(done.relabeled), len(done.forgotten), done.skipped) == (1, 1, ())
    [first, last] = [stored(each) for each in cascade.exits_]
    assert first == last
    assert last[str(decisions.decisions[0].id)] == "dog"
    assert len(last) == 7
    assert str(apply_decisions(cascade, decisions, folder)) == "2 as decided already"
    # The exit without vectors finds the moved file.
    assert cascade.relabel(str(decisions.decisions[0].id), "cat") == 1


def test_no_file_is_written_over(folder: Path) -> None:
    """A name that is taken gets a number, and the file is found there when it is done again."""
    draw(folder / "dog/240.png", 7), draw(folder / "dog/240-2.png", 8)
    draw(folder / "_removed/cat/30.png", 9)
    before = files(folder)
    decisions = decided(
        None, relabel(folder / "cat/240.png", "cat", "dog"), forget(folder / "cat/30.png", "cat")
    )
    done = apply_decisions(None, decisions, folder)
    assert [Path(target).relative_to(folder).as_posix() for _, target in done.moved] == [
        "dog/240-3.png",
        "_removed/cat/30-2.png",
    ]
    after = files(folder)
    assert sorted(after.values()) == sorted(before.values())
    assert str(apply_decisions(None, decisions, folder)) == "2 as decided already"
    assert files(folder) == after


def test_a_folder_that_was_moved_is_found_by_its_files(folder: Path, tmp_path: Path) -> None:
    """Places are taken from the end of the path that the audit knew; the content must be the same."""
    decisions = decided(
        None, forget(folder / "cat/240.png", "cat"), relabel(folder / "dog/40.png", "dog", "cat")
    )
    shutil.move(folder, tmp_path / "other")
    assert len(apply_decisions(None, decisions, tmp_path / "other").moved) == 2
    assert (tmp_path / "other/_removed/cat/240.png").exists()
    assert (tmp_path / "other/cat/40.png").exists()
    outside = ImageDecision("forget", "0" * 32, str(tmp_path / "x/../../secret.png"), "cat")
    [(_, reason)] = apply_decisions(None, decided(None, outside), tmp_path / "other").skipped
    assert "does not lie in the folder" in reason


@pytest.mark.filterwarnings("ignore:.*given under several labels:clipretrieval.ClipRetrievalWarning")
def test_copies_of_a_file_are_one_image(folder: Path) -> None:
    """One copy goes, and the image stays stored under the label of the other, or goes with the last."""
    wrong, copy = folder / "dog/copy.png", folder / "cat/10.png"
    wrong.write_bytes(copy.read_bytes())
    for name in ("a", "b"):
        (folder / f"dog/{name}.png").write_bytes((folder / "dog/210.png").read_bytes())
    classifier = fitted(folder)
    kept, gone = file_id(copy), file_id(folder / "dog/a.png")
    assert stored(classifier)[kept] == "dog"  # it came last
    decisions = decided(
        classifier,
        ImageDecision("forget", f"{kept}-2", str(wrong), "dog", "cat"),
        forget(folder / "dog/210.png", "dog"),
        ImageDecision("forget", f"{gone}-2", str(folder / "dog/a.png"), "dog"),
        ImageDecision("forget", f"{gone}-3", str(folder / "dog/b.png"), "dog"),
    )
    done = apply_decisions(classifier, decisions, folder)
    assert (len(done.relabeled), len(done.forgotten), len(done.moved), done.skipped) == (1, 1, 4, ())
    assert stored(classifier)[kept] == "cat"
    assert gone not in stored(classifier)
    assert files(folder / "_removed").keys() == {
        *("dog/copy.png", "dog/210.png", "dog/a.png", "dog/b.png"),
    }
    assert str(apply_decisions(classifier, decisions, folder)) == "4 as decided already"


def test_a_file_that_could_not_be_read_is_moved(folder: Path) -> None:
    """It is in no store; nor is it moved where it can be read by now."""
    classifier = fitted(folder)
    broken, mended = folder / "dog/broken.png", folder / "dog/220.png"
    broken.write_bytes(b"no image")
    decisions = decided(
        classifier, *(ImageDecision("forget", None, str(path), "dog") for path in (broken, mended))
    )
    skipped = apply_decisions(classifier, decisions).skipped
    reasons = {reason for _, reason in skipped}
    assert (len(skipped), reasons) == (2, {"it is a file that is not stored, and no folder was given"})
    done = apply_decisions(classifier, decisions, folder)
    assert files(folder / "_removed").keys() == {"dog/broken.png"}
    assert [reason for _, reason in done.skipped] == [f"the file {str(mended)!r} can be read now"]


@pytest.mark.skipif(os.name == "nt", reason="Windows makes no links without a privilege")
def test_links_stay_what_they_are(folder: Path, tmp_path: Path) -> None:
    """A link is moved and leads where it led; no file loses its only name where two folders are one."""
    pool = draw(tmp_path / "pool/a.png", 77)
    link, absolute = folder / "cat/link.png", folder / "cat/absolute.png"
    link.symlink_to("../../pool/a.png")
    absolute.symlink_to(draw(tmp_path / "pool/b.png", 78))
    (folder / "feline").symlink_to("cat")
    decisions = decided(
        None,
        forget(link, "cat"),
        relabel(absolute, "cat", "dog"),
        relabel(folder / "cat/240.png", "cat", "feline"),
    )
    for _ in range(2):
        assert apply_decisions(None, decisions, folder).skipped == ()
    moved = folder / "_removed/cat/link.png"
    assert moved.is_symlink()
    assert moved.resolve() == pool.resolve()
    assert (folder / "dog/absolute.png").readlink() == tmp_path / "pool/b.png"
    assert not link.is_symlink()
    assert (folder / "cat/240.png").exists()


@pytest.mark.parametrize("label", ["a/b", ".hidden", "_removed", "x" * 300, ".."])
def test_a_class_that_cannot_name_a_folder_keeps_its_file(folder: Path, label: str) -> None:
    """The classifier takes any label; the file stays where it is, and that is said."""
    classifier = fitted(folder)
    decisions = decided(classifier, relabel(folder / "cat/240.png", "cat", label))
    done = apply_decisions(classifier, decisions, folder)
    assert stored(classifier)[str(decisions.decisions[0].id)] == label
    assert "cannot be the name of a folder" in done.skipped[0][1]
    assert (folder / "cat/240.png").exists()


TESTS = str(Path(__file__).parents[1])
PROGRAM = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
sys.path.append({tests!r})
from audited import Shade
from clipretrieval import RetrievalClassifier
from clipretrieval.auditing import apply_decisions
{patch}
root = Path({root!r})
made = RetrievalClassifier.load(root / "kept", Shade())
apply_decisions(made, root / "decisions.json", root / "pictures")
made.save(root / "kept")
"""
DIE = "(lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))"
DEATHS = {
    "before the second is moved": """
import clipretrieval.auditing.folder_moves as moves
whole, count = moves.FolderMoves.carry_out, []
def carry_out(self, move):
    count.append(move)
    return whole(self, move) if len(count) < 2 else %s()
moves.FolderMoves.carry_out = carry_out
""",
    "while it has two names": """
import os
os_link = os.link
def link(source, target):
    os_link(source, target)
    %s()
os.link = link
""",
    "amid relabeling": """
import clipretrieval.retrieval.edit as edit
edit._keep = %s
""",
    "before forgetting": """
RetrievalClassifier.forget = %s
""",
    "amid forgetting": """
import clipretrieval.retrieval.edit as edit
edit._emptied = lambda store, labels: [] if store.count() > 5 else %s()
""",
    "before it is saved": """
RetrievalClassifier.save = %s
""",
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    ("death", "store"),
    [
        ("amid relabeling", "folder"),
        ("before forgetting", "folder"),
        ("amid forgetting", "folder"),
        ("while it has two names", "folder"),
        ("before the second is moved", "folder"),
        ("before it is saved", "faiss"),
    ],
)
def test_the_next_finishes_what_a_killed_one_has_begun(folder: Path, death: str, store: str) -> None:
    """Store and folder end as if nothing had happened, whatever was being done."""
    root = folder.parent
    options = {"store_options": {"path": root / "kept/vectors"}} if store == "folder" else {}
    classifier = fitted(folder, head="discriminant", **options)
    classifier.save(root / "kept")
    decisions = decided(
        classifier,
        relabel(folder / "cat/240.png", "cat", "dog"),
        relabel(folder / "dog/40.png", "dog", "cat"),
        *(forget(folder / f"dog/{shade}.png", "dog") for shade in (210, 220, 230)),
    )
    decisions.to_json(root / "decisions.json")
    classifier.store_.close()
    killed = run_warm(["-c", PROGRAM.format(patch=DEATHS[death] % DIE, root=str(root), tests=TESTS)])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    found = RetrievalClassifier.load(root / "kept", Shade())
    apply_decisions(found, root / "decisions.json", folder)
    assert sorted(stored(found).values()) == ["cat"] * 4 + ["dog"]
    assert found.classes_.tolist() == ["cat", "dog"]
    assert set(files(folder)) == {
        *("cat/10.png", "cat/20.png", "cat/30.png", "cat/40.png", "dog/240.png"),
        *("_removed/dog/210.png", "_removed/dog/220.png", "_removed/dog/230.png"),
    }
    assert found.predict(folder / "cat/40.png").tolist() == ["cat"]
    sources = found.store_.get(list(stored(found))).metadata
    assert all(Path(each["source"]).is_file() for each in sources)
    assert found.class_statistics().counts.sum() == 5
    assert str(apply_decisions(found, decisions, folder)) == "5 as decided already"
    found.store_.close()


def test_decisions_are_checked(folder: Path, tmp_path: Path) -> None:
    """What is no decision, of another version, or contradicts another is refused with its place."""
    classifier = fitted(folder)
    cat = folder / "cat/10.png"
    made = decided(classifier, relabel(cat, "cat", "dog"), keep(folder / "cat/20.png", "cat"))
    path = tmp_path / "decisions.json"
    made.to_json(path)
    assert Decisions.from_json(path).decisions == made.decisions
    assert repr(made) == "Decisions(relabel=1, forget=0, keep=1)"
    with pytest.raises(InvalidInputError, match="contradict each other"):
        decided(classifier, relabel(cat, "cat", "dog"), forget(cat, "cat"))
    with pytest.raises(InvalidInputError, match="a classifier, a folder, or both"):
        apply_decisions(None, made)
    with pytest.raises(InvalidInputError, match="must be a RetrievalClassifier"):
        apply_decisions(ZeroShotClassifier, made)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="there is no folder"):
        apply_decisions(None, made, tmp_path / "nowhere")
    whole = made.to_dict()

    def refused(message: str, content: Any) -> None:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        with pytest.raises(InvalidInputError, match=message):
            apply_decisions(classifier, path)

    refused("holds no JSON", "{")
    refused("has no decisions on an audit", {**whole, "kind": "audit"})
    refused("schema version 7", {**whole, "schema_version": 7})
    refused("have no list", {**whole, "decisions": None})
    changes: list[tuple[str, Any, str]] = [
        ("action", "burn", "the action is 'burn'"),
        ("id", 5, "the id is 5"),
        ("source", "", "the source is ''"),
        ("label", None, "there is no label"),
        ("label", [1], "no label"),
        ("id", None, "a label needs an id"),
        ("extra", 1, "must have the fields"),
    ]
    for name, value, message in changes:
        wrong = {**whole["decisions"][0], name: value}
        refused(f"decision 1 of 1: .*{re.escape(message)}", {**whole, "decisions": [wrong]})
    with pytest.raises(InvalidInputError, match="cannot be read"):
        Decisions.from_json(tmp_path / "none.json")
