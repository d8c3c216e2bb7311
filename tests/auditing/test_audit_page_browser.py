"""The page of an audit in headless Chromium: what is decided on it arrives in the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from audited import draw_folder, file_id, fingerprint_of, fitted, report_of, stored
from browser import BROWSER_MARKS, Opened

from clipretrieval import RetrievalClassifier
from clipretrieval.auditing import Decisions, Estimate, Finding, RelatedImage, apply_decisions

Keys = pytest.importorskip("selenium.webdriver.common.keys", reason="selenium is not installed").Keys

pytestmark = BROWSER_MARKS

HARM = "</script><img src=x onerror=alert(1)>"


@dataclass
class Audited:
    """A classifier, its folder, and the page of its audit."""

    classifier: RetrievalClassifier
    folder: Path
    page: Path
    downloads: Path

    def saved(self, page: Opened, save: Any) -> Decisions:
        """Save the decisions, and read what has arrived."""
        from selenium.webdriver.support.ui import WebDriverWait

        file = self.downloads / "decisions.json"
        file.unlink(missing_ok=True)
        where = {"behavior": "allow", "downloadPath": str(self.downloads)}
        page.chrome.execute_cdp_cmd("Browser.setDownloadBehavior", where)
        save()
        WebDriverWait(page.chrome, 20).until(lambda _: file.exists())
        return Decisions.from_json(file)


@pytest.fixture
def audited(tmp_path: Path) -> Audited:
    folder = draw_folder(tmp_path / "pictures")
    copy, broken = folder / "dog/copy.png", folder / "dog/broken.png"
    copy.write_bytes((folder / "dog/210.png").read_bytes())
    classifier = fitted(folder)
    broken.write_bytes(b"no image")

    def found(kind: str, place: str, suggested: Any = None, group: int | None = None, **more: Any) -> Finding:
        path = folder / place
        near = [folder / f"dog/{shade}.png" for shade in (210, 220)]
        neighbors = tuple(RelatedImage(file_id(each), "dog", str(each), 0.25) for each in near)
        image_id = None if kind == "broken" else file_id(path) + ("-2" if "copy" in place else "")
        return Finding(
            *(kind, image_id, path.parent.name, str(path), 0.5, 0.75, suggested),
            **{"neighbors": neighbors, "group": group, **more},
        )

    findings = [
        found("label", "cat/240.png", "dog"),
        found("label", "dog/40.png", "cat", note=HARM),
        found("duplicate", "dog/210.png", group=0),
        found("duplicate", "dog/copy.png", group=0),
        found("duplicate", "cat/240.png", "dog", group=1),
        found("leak", "cat/20.png", group=0),
        Finding("leak", "t", HARM, str(tmp_path / "gone.png"), group=0, where="test"),
        found("outlier", "cat/10.png"),
        Finding("confusion", None, "cat", suggested=HARM, score=0.5),
        found("broken", "dog/broken.png"),
    ]
    report = report_of(
        findings,
        ("cat", "dog", HARM),
        n_test=3,
        fingerprint=fingerprint_of(classifier),
        left_out={"harm": "it takes test images with labels"},
        estimates={"label": Estimate(2, 1, 4, 8, 2, "by leave-one-out")},
    )
    report.to_html(tmp_path / "audit.html", title=HARM)
    return Audited(classifier, folder, tmp_path / "audit.html", tmp_path)


def test_decisions_by_mouse_arrive_and_are_applied(chrome: Any, audited: Audited) -> None:
    """On a narrow dark screen: suggested and other classes, one of two copies, a file, nothing sticks out."""
    page = Opened(chrome, audited.page, 360, dark=True)
    page.check_quiet_and_fitting()
    page.check_names()
    assert page.chrome.title == HARM
    assert page.run("return document.querySelectorAll('script').length") == 2
    paper = page.run("return getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(20, 24, 29)"
    assert "file is gone" in page.run("return document.getElementById('leak-1-2').innerText")
    assert not page.all("#leak-1-2 .choice")  # a test image is not in the classifier
    assert not page.visible("#broken-1-1 .relabel")

    def choose(card: str, value: str) -> None:
        page.all(f"#{card} [type=radio][value='{value}']")[0].click()

    choose("label-1-1", "relabel")
    [field] = page.all("#label-2-1 .class")
    field.clear()
    field.send_keys("no such class", Keys.TAB)
    assert page.run("return document.querySelector('#label-2-1 .class').validity.valid") is False
    assert page.all("#label-2-1")[0].get_attribute("data-decided") == ""
    field.clear()
    field.send_keys(HARM, Keys.TAB)
    choose("duplicate-1-2", "forget")
    choose("leak-1-1", "keep")
    choose("broken-1-1", "forget")
    # The same image in another section is decided on with it.
    assert page.all("#duplicate-2-1")[0].get_attribute("data-decided") == "relabel"
    assert page.all("#decided")[0].text == "2 relabel, 2 forget, 1 keep; 2 undecided"
    decisions = audited.saved(page, page.all("#save")[0].click)
    path = audited.folder
    assert [(each.action, each.source, each.label) for each in decisions.decisions] == [
        ("relabel", str(path / "cat/240.png"), "dog"),
        ("relabel", str(path / "dog/40.png"), HARM),
        ("forget", str(path / "dog/copy.png"), "dog"),
        ("keep", str(path / "cat/20.png"), None),
        ("forget", str(path / "dog/broken.png"), None),
    ]
    assert decisions.fingerprint == fingerprint_of(audited.classifier)
    done = apply_decisions(audited.classifier, decisions, path)
    assert [reason for _, reason in done.skipped] == [f"the class {HARM!r} cannot be the name of a folder"]
    answers = audited.classifier.predict([path / "dog/240.png", path / "dog/40.png"])
    assert answers.tolist() == ["dog", HARM]
    assert file_id(path / "dog/210.png") in stored(audited.classifier)
    assert (path / "_removed/dog/copy.png").exists()
    assert (path / "_removed/dog/broken.png").exists()


def test_decisions_by_keyboard_arrive_and_are_remembered(chrome: Any, audited: Audited) -> None:
    """Keys decide and go on to the next image; filters leave out what is decided; a reload keeps it all."""
    page = Opened(chrome, audited.page)
    page.check_quiet_and_fitting()

    def at() -> str:
        return str(page.run("return document.activeElement.id"))

    def press(*keys: str) -> None:
        for key in keys:
            page.chrome.switch_to.active_element.send_keys(key)

    page.run("document.getElementById('label-1-1').focus()")
    press("r")  # as suggested
    assert at() == "label-2-1"
    press("p", "n", "c", "dog", Keys.ESCAPE)
    assert at() == "label-2-1"
    press("c", HARM, Keys.ENTER)
    assert at() == "duplicate-1-1"
    press("f", "f")  # both copies: the image goes
    press("n", "r", "k")  # nothing is suggested for it: the field takes the letters
    assert at() == ""
    press(Keys.ESCAPE, Keys.ESCAPE, "k", "n", "k", "u")  # the first one may close the list of classes
    assert at() == "broken-1-1"
    assert page.all("#decided")[0].text == "2 relabel, 2 forget, 2 keep; 1 undecided"
    page.all("#by-state option[value=no]")[0].click()
    assert [each.get_attribute("id") for each in page.visible(".card")] == ["broken-1-1"]
    assert page.all("#shown")[0].text == "1 of 9 images shown"
    page = Opened(chrome, audited.page)
    assert page.all("#decided")[0].text == "2 relabel, 2 forget, 2 keep; 1 undecided"
    page.all("#by-class option:last-child")[0].click()
    assert {each.get_attribute("id") for each in page.visible(".card")} == {"leak-1-1", "leak-1-2"}
    page.all("#by-class option")[0].click()
    page.run("document.getElementById('label-1-1').focus()")
    decisions = audited.saved(page, lambda: press("s"))
    assert [(each.action, each.label) for each in decisions.decisions][2:4] == [("forget", None)] * 2
    apply_decisions(audited.classifier, decisions)
    labels = stored(audited.classifier)
    assert labels[file_id(audited.folder / "cat/240.png")] == "dog"
    assert labels[file_id(audited.folder / "dog/40.png")] == HARM
    assert file_id(audited.folder / "dog/210.png") not in labels
    before = dict(labels)
    again = apply_decisions(audited.classifier, decisions)
    assert (len(again.unchanged), again.relabeled, again.forgotten) == (4, (), ())
    assert stored(audited.classifier) == before
    page.run("window.confirm = () => true")
    page.all("#clear")[0].click()
    assert page.all("#decided")[0].text == "0 relabel, 0 forget, 0 keep; 7 undecided"
    assert Opened(chrome, audited.page).all("#decided")[0].text == "0 relabel, 0 forget, 0 keep; 7 undecided"
