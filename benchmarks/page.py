"""How large a report's page is, and how fast Chromium opens it.

    python benchmarks/page.py --answers 100000 --classes 200

Needs selenium, chromium and chromedriver. Each page is opened five times in a fresh tab; the median and the
slowest time from the start of the navigation to the end of the load event, the page's script included, are
printed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from clipretrieval import EvaluationReport
from clipretrieval._util.timing import Timing

QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
LOADED = "const [entry] = performance.getEntriesByType('navigation'); return entry.loadEventEnd"


def made(answers: int, classes: int, errors: float) -> EvaluationReport:
    """Answers at random, of which a share is wrong and lies farther."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, classes, answers)
    wrong = rng.random(answers) < errors
    answer = np.where(wrong, rng.integers(0, classes, answers), true)
    names = np.array(["<script>alert(1)</script>", "中文", "سيارة", *(f"class {i}" for i in range(classes))])
    return EvaluationReport(
        y_true=names[true],
        y_pred=names[answer],
        distances=(rng.gamma(9, 0.05, answers) + 0.2 * wrong).astype(np.float32),
        classes=names[:classes],
        setting={"model": "RN50", "stage": "late"},
        timing=Timing(),
        confidence=rng.integers(1, 6, answers) / 5,
    )


def main() -> None:
    """Write pages with few and with many errors, and open them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=200)
    arguments = parser.parse_args()
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        parser.error("chromium and chromedriver must be on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for argument in (*QUIET, f"--user-data-dir={folder}/profile"):
            options.add_argument(argument)
        chrome = webdriver.Chrome(options, Service(driver))
        try:
            for errors in (0.0, 0.2, 0.9):
                file = Path(folder) / "page.html"
                started = time.perf_counter()
                made(arguments.answers, arguments.classes, errors).to_html(file)
                written = time.perf_counter() - started
                times = []
                for _ in range(5):
                    chrome.switch_to.new_window("tab")
                    chrome.get(file.as_uri())
                    times.append(chrome.execute_script(LOADED) / 1000)
                print(
                    f"{errors:.0%} wrong: {file.stat().st_size / 1e6:.2f} MB, written in {written:.2f} s, "
                    f"opened in {statistics.median(times):.2f} s (slowest {max(times):.2f} s)"
                )
        finally:
            chrome.quit()


if __name__ == "__main__":
    main()
