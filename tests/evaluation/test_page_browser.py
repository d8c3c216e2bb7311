"""The HTML page in headless Chromium, as its readers meet it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import BROWSER_MARKS, Opened
from pages import COMPARISON, SCRIPT, made, mistaken
from PIL import Image

from clipretrieval.evaluation import write_page

Keys = pytest.importorskip("selenium.webdriver.common.keys", reason="selenium is not installed").Keys

pytestmark = BROWSER_MARKS


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages: names that mean harm, many classes and answers, several reports, all right, one vote each."""
    folder = tmp_path_factory.mktemp("pages")
    picture = folder / "<b>.png"
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(picture)
    names = [SCRIPT, "</script><img src=x onerror=alert(1)>", "中文类别", "سيارة (٣)", "x" * 80, "one"]
    harmful = made(600, names, single="one", mistakes=[mistaken(names[1], names[3], str(picture))])
    harmful.to_html(folder / "harmful.html", title=f"{SCRIPT} سيارة")
    made(100_000, [f"class {place:03}" for place in range(200)]).to_html(folder / "large.html")
    several = {row["name"]: made(500, ["cat", "dog"], seed) for seed, row in enumerate(COMPARISON)}
    write_page(folder / "several.html", several, comparison=COMPARISON)
    made(50, ["cat", "dog"], errors=0.0).to_html(folder / "right.html")
    ones = np.ones(50)
    replace(made(50, ["cat", "dog"]), confidence=ones, margin=ones).to_html(folder / "single.html")
    return folder


@pytest.mark.parametrize("name", ["harmful", "large", "several", "right"])
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)], ids=["wide", "narrow"])
def test_every_page_is_quiet_and_fits(chrome: Any, pages: Path, name: str, width: int, dark: bool) -> None:
    """No message on the console, no request but for the page and what lies in it, nothing sticks out."""
    page = Opened(chrome, pages / f"{name}.html", width, dark)
    page.check_quiet_and_fitting()
    assert all(box.size["height"] > 50 for box in page.visible(".slider"))
    assert len(page.visible(".slider")) == len(page.all("[data-report]"))


def test_the_policy_forbids_requests_and_other_scripts(chrome: Any, pages: Path) -> None:
    """Even a script that got into the page would not run, nor a picture be fetched from elsewhere."""
    page = Opened(chrome, pages / "right.html")
    page.run(
        """const script = document.createElement('script'); script.textContent = 'window.intruded = true';
        document.body.append(script);
        const image = new Image(); image.src = 'http://127.0.0.1:9/x.png'; document.body.append(image);"""
    )
    assert page.run("return window.intruded") is None
    assert (
        len([entry for entry in page.chrome.get_log("browser") if "Content Security" in entry["message"]])
        == 2
    )


def test_names_are_text_and_keep_their_direction(chrome: Any, pages: Path) -> None:
    """Markup in a name is shown and does nothing; Arabic runs from right to left without turning the rest."""
    page = Opened(chrome, pages / "harmful.html")
    assert page.chrome.title == f"{SCRIPT} سيارة"
    rows = page.run(
        """return [...document.querySelectorAll('table.sortable')[0].tBodies[0].rows].map((row) =>
        [row.cells[0].innerText, row.cells[4].innerText])"""
    )
    shown = dict(rows)
    assert {SCRIPT, "</script><img src=x onerror=alert(1)>", "中文类别", "سيارة (٣)"} < set(shown)
    assert shown["one"] == "1"
    assert max(map(len, shown)) <= 60  # a long name is shortened
    assert page.run(
        "return [...document.querySelectorAll('th bdi')].filter((each) => each.textContent.startsWith('س'))"
        ".every((each) => getComputedStyle(each).direction === 'rtl')"
    )
    [picture] = page.all(".asked img")
    assert page.run("return document.querySelector('.asked img').naturalWidth") == 60
    assert picture.get_attribute("alt") == "image 8, of سيارة (٣)"
    assert page.run("return document.querySelectorAll('script').length") == 2


def test_the_slider_moves_every_figure(chrome: Any, pages: Path) -> None:
    """At each place: how many are kept and how many of them are right, as counted from the answers."""
    page = Opened(chrome, pages / "large.html")
    report = made(100_000, [f"class {place:03}" for place in range(200)])
    assert page.out("kept") == "100.00%"
    assert page.out("accuracy") == f"{report.accuracy:.2%}"
    marker = "return document.querySelector('[data-measure=distance] .marker').getAttribute('cx')"
    before = page.run(marker)
    [slider] = page.visible(".slider input")
    slider.send_keys(Keys.ARROW_LEFT * 3)
    slider.send_keys(Keys.PAGE_DOWN * 3)
    data = json.loads(page.run("return document.getElementById('data').textContent"))[0]
    threshold, _, kept, errors, *_ = data["points"]["distance"][int(slider.get_attribute("value"))]
    near = report.distances.astype(np.float64) <= threshold
    right = report.correct[near].sum()
    assert (kept, errors) == (near.sum(), kept - right)
    assert kept < 90_000
    wrong = int((~report.correct).sum())
    assert page.out("kept") == f"{kept / 100_000:.2%}"
    assert page.out("count") == f"{kept:,} of 100,000"
    assert page.out("accuracy") == f"{right / kept:.2%}"
    assert page.out("caught-count") == f"{wrong - errors:,} of {wrong:,}"
    assert page.out("lost-count") == f"{100_000 - wrong - right:,} of {100_000 - wrong:,}"
    assert f"{right / kept:.2%} correct" in slider.get_attribute("aria-valuetext")
    assert float(page.run(marker)) < float(before)
    line = "document.querySelector('[data-measure=distance] .threshold')"
    assert page.run(f"return getComputedStyle({line}).display") != "none"
    slider.send_keys(Keys.HOME)
    assert page.out("count") == f"{data['points']['distance'][0][2]:,} of 100,000"


def test_another_measure_can_be_chosen(chrome: Any, pages: Path) -> None:
    """The page begins with the best one; the share's slider keeps what has at least that share."""
    page = Opened(chrome, pages / "harmful.html")
    report = made(
        600,
        [SCRIPT, "</script><img src=x onerror=alert(1)>", "中文类别", "سيارة (٣)", "x" * 80, "one"],
        single="one",
    )
    assert report.best_measure == "distance"
    radios = page.all(".choice input")
    assert [radio.get_attribute("value") for radio in radios] == ["share", "margin", "distance"]
    assert [radio.is_selected() for radio in radios] == [False, False, True]
    radios[2].send_keys(Keys.ARROW_UP * 2)
    assert radios[0].is_selected()
    assert {each.get_attribute("data-measure") for each in page.visible("[data-measure]")} == {"share"}
    assert len(page.visible("svg[data-chart]")) == 4  # with the calibration
    [slider] = page.visible(".slider input")
    assert page.out("threshold") == "20.00%"
    slider.send_keys(Keys.ARROW_LEFT * 2)
    assert report.confidence is not None
    kept = report.confidence >= 3 / 5
    assert page.out("threshold") == "60.00%"
    assert page.out("count") == f"{kept.sum()} of 600"
    assert page.out("accuracy") == f"{report.correct[kept].mean():.2%}"
    line = page.run(
        """const svg = document.querySelector('[data-measure=share] [data-chart=histogram]');
        const [low, high, start, end] = svg.dataset.x.split(' ').map(Number);
        const moved = svg.querySelector('.threshold').getAttribute('transform');
        return [Number(moved.match(/[\\d.]+/)[0]), start + 0.6 * (end - start), low, high]"""
    )
    assert line[0] == pytest.approx(line[1], abs=0.1)
    assert line[2:] == [0, 1]


def test_a_measure_that_is_the_same_for_all_cannot_be_chosen(chrome: Any, pages: Path) -> None:
    """With one vote every share is 1: the page says so and begins with the distance."""
    page = Opened(chrome, pages / "single.html")
    radios = page.all(".choice input")
    assert [radio.is_enabled() for radio in radios] == [False, False, True]
    assert [each.text for each in page.all(".choice label")] == [
        "share of the votes (the same for all)",
        "margin (the same for all)",
        "distance",
    ]
    assert {each.get_attribute("data-measure") for each in page.visible("[data-measure]")} == {"distance"}


def test_tables_sort_by_keyboard(chrome: Any, pages: Path) -> None:
    """Enter on a heading sorts: numbers from the greatest, then the other way; what is missing stays last."""
    page = Opened(chrome, pages / "several.html", 1200)

    def column(place: int) -> Any:
        return page.run(
            f"""return [...document.querySelector('#comparison table').tBodies[0].rows]
            .map((row) => row.cells[{place}].innerText)"""
        )

    heads = page.all("#comparison th .sort")
    texts = [head.text for head in heads]
    speed = texts.index("over open_clip")
    assert "p (McNemar)" not in texts  # no row has one
    heads[speed].send_keys(Keys.ENTER)
    assert column(speed) == ["3.00 ×", "2.00 ×", "–"]
    heads[speed].send_keys(Keys.SPACE)
    assert column(speed) == ["2.00 ×", "3.00 ×", "–"]
    assert page.all("#comparison th")[speed].get_attribute("aria-sort") == "ascending"
    heads[0].send_keys(Keys.ENTER)
    assert column(0) == ["late", "mid", "zero-shot"]
    assert [each.get_attribute("aria-sort") for each in page.all("#comparison thead th")].count(None) == len(
        heads
    ) - 1
    assert page.run("return document.activeElement.textContent") == "name"


def test_many_classes_are_a_picture_that_can_be_read(chrome: Any, pages: Path) -> None:
    """The canvas has a pixel a cell, coloured where something was counted, and names the cell pointed at."""
    page = Opened(chrome, pages / "large.html")
    report = made(100_000, [f"class {place:03}" for place in range(200)])
    opaque = page.run(
        """const canvas = document.querySelector('canvas');
        const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.width, Array.from(data).filter((value, place) => place % 4 === 3 && value).length]"""
    )
    assert opaque == [200, int((report.confusion_matrix > 0).sum())]
    page.run(
        """const canvas = document.querySelector('canvas'), box = canvas.getBoundingClientRect();
        canvas.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + box.width * 7.5 / 200,
        clientY: box.top + box.height * 7.5 / 200}))"""
    )
    count, total = report.confusion_matrix[7, 7], report.confusion_matrix[7].sum()
    assert page.out("cell") == f"class 007, answered class 007: {count} of {total}"
    assert len(page.all("table.sortable tbody th")) == 200 + 30


def test_the_page_follows_the_theme_and_prints_on_white(chrome: Any, pages: Path) -> None:
    """Dark on a dark screen, light in print, with the tables open that were folded."""
    page = Opened(chrome, pages / "right.html", dark=True)
    paper = "return getComputedStyle(document.body).backgroundColor"
    assert page.run(paper) == "rgb(20, 24, 29)"
    page.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert page.run(paper) == "rgb(255, 255, 255)"
    page.run("window.dispatchEvent(new Event('beforeprint'))")
    assert not page.all("details:not([open])")
    page.run("window.dispatchEvent(new Event('afterprint'))")
    assert page.all("details:not([open])")


def test_everything_has_a_name_for_a_screen_reader(chrome: Any, pages: Path) -> None:
    """Regions, charts, pictures and controls are named, ids are unique, headings leave no level out."""
    page = Opened(chrome, pages / "several.html")
    page.check_names()
