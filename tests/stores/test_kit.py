"""The conformance suite: our own stores pass it, and stores made wrong on purpose do not."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from clipretrieval.stores import FaissStore, VectorStore
from clipretrieval.testing import VectorStoreTests, contracts

pytest_plugins = ["pytester"]


class TestFaissStore(VectorStoreTests):
    """The FaissStore in memory conforms."""

    persistent = False
    exact_vectors = ("l2", "ip")

    machine_settings: ClassVar[dict[str, Any]] = {"max_examples": 10}

    def open_store(self, metric: str, folder: Path) -> VectorStore:
        return FaissStore(metric=metric)


class TestFaissFolder(VectorStoreTests):
    """The FaissStore in a folder conforms, and shows what was written before it is flushed."""

    exact_vectors = ("l2", "ip")

    def open_store(self, metric: str, folder: Path) -> VectorStore:
        return FaissStore(folder, metric=metric)

    def settle(self, store: VectorStore) -> None:
        pass


ALL = "test_any_sequence_of_calls_agrees_with_memory"
# For each wrong store a test that must fail, words of its message, and whether the state machine notices.
WRONG = {
    "Similarity": ("test_distances_by_hand[cosine]", "cosine is 1 - cosine", True),
    "RootTaken": ("test_distances_by_hand[l2]", "l2 is the squared distance", True),
    "SquaredTwice": ("test_distances_are_those_of_the_ids[l2]", "l2 is the squared distance", True),
    "Reversed": ("test_rows_ascend[ip]", "must ascend", True),
    "LabelsShifted": ("test_labels_are_those_of_the_ids[l2]", "must carry its own label", True),
    "UpsertAdds": ("test_upsert_replaces_wholly", "an id must be stored once", True),
    "DeleteLies": ("test_delete_tells_how_many_were_there", "how many of the ids were stored", True),
    "PaddedWithZeros": ("test_rows_are_padded_beyond_the_count[l2-int]", "distance +inf", True),
    "IdsLost": ("test_a_reopened_store_has_the_same_contents[l2-int]", "lost", True),
    "CosineNotNormalised": ("test_distances_are_those_of_the_ids[cosine]", "cosine is 1 - cosine", True),
    "FirstTenThousand": ("test_a_call_may_hold_10001_vectors", "found 10000", False),
    "MetadataMerged": ("test_upsert_replaces_wholly", "replaced, not merged", True),
    "StoredByHalves": ("test_a_malformed_upsert_changes_nothing[an id twice]", "changed the store", True),
    "PagesOverlap": ("test_a_scan_follows_writes", "list each record once", True),
    "LabelsAsText": ("test_a_scan_takes_a_label[int]", "no record is labeled", False),
    "CountsOnce": ("test_a_count_takes_a_label[str]", "== [3, 3, 3, 3]", False),
    "CountsAll": ("test_a_count_takes_a_label[int]", "== [3, 3, 3, 3]", False),
    "OnePage": ("test_a_scan_lists_10001_records_once", "must list every record", False),
    "FlushDoesNothing": ("test_what_is_flushed_is_there_for_others", "before what was written", False),
    "LabelsFirst": ("test_threads_search_while_one_writes", "gave a vector another's label", False),
    "EmptyBlobIsNone": ("test_blobs_are_kept_byte_for_byte", "read at once", True),
    "BlobOverwritten": ("test_a_blob_is_replaced_whole", "with nothing left of the old", True),
    "BlobsGoWithRecords": ("test_a_blob_is_no_record", "must not go with the records", True),
    "BlobsLost": ("test_reopened_stores_have_their_blobs[l2]", "lost on reopening", True),
    "MissesSome": ("test_the_nearest_are_found[l2]", "recall_floor declares 1.0", True),
}


def run_kit(
    pytester: pytest.Pytester, store: str, tests: str = "", examples: int = 10, **declarations: Any
) -> dict[str, Any]:
    """Run the suite, or those of its tests, on a store of wrong_stores; return each report by its name."""
    lines = [f"    {name} = {value!r}" for name, value in declarations.items()]
    source = f"""
import wrong_stores
from hypothesis import Phase
from clipretrieval.testing import VectorStoreTests

class TestStore(VectorStoreTests):
    # Failures are looked for and not made smaller.
    machine_settings = {{
        "max_examples": {examples}, "phases": [Phase.generate], "report_multiple_bugs": False
    }}
{chr(10).join(lines)}

    def open_store(self, metric, folder):
        return wrong_stores.{store}(metric, folder)
"""
    pytester.makepyfile(source)
    result = pytester.inline_run("-q", "-W", "error", "-p", "no:cacheprovider", "-k", tests)
    passed, skipped, failed = result.listoutcomes()
    return {report.location[2].removeprefix("TestStore."): report for report in (*passed, *skipped, *failed)}


@pytest.mark.parametrize(
    ("store", "declared"),
    [("Right", {}), ("ShownOnFlush", {}), ("MissesSome", {"recall_floor": 0.9, "ties_by_id": False})],
)
def test_a_right_store_passes(pytester: pytest.Pytester, store: str, declared: dict[str, Any]) -> None:
    """A store that does what it declares passes, and only what it declares not to do is skipped."""
    reports = run_kit(pytester, store, **declared)
    assert [name for name, report in reports.items() if report.failed] == []
    reasons = {report.longrepr[2] for report in reports.values() if report.skipped}
    assert {reason.split(" ")[1] for reason in reasons} - {"TestStore.ties_by_id"} == {store}
    assert len(reports) > 150


@pytest.mark.parametrize("store", WRONG)
def test_a_wrong_store_fails(pytester: pytest.Pytester, store: str) -> None:
    """Each fault fails the test that is made for it, with a message that tells what is wrong."""
    decisive, words, noticed = WRONG[store]
    # Hypothesis draws from constants of whatever is imported, so what ten examples find varies; it stops at
    # the first failure.
    examples = 150 if noticed else 10
    # A fault of one metric is looked for under this metric, any other under the first.
    named = decisive.partition("[")[2].rstrip("]").partition("-")[0]
    metrics = (named if named in ("l2", "cosine", "ip") else "l2",)
    reports = run_kit(pytester, store, f"{ALL} or {decisive.partition('[')[0]}", examples, metrics=metrics)
    assert reports[decisive].failed
    assert words in reports[decisive].longreprtext
    by_machine = [name for name, report in reports.items() if name.startswith(ALL) and report.failed]
    assert bool(by_machine) == noticed


def test_what_a_store_cannot_do_is_skipped_by_name(pytester: pytest.Pytester) -> None:
    """Each capability that a store lacks is named by the tests that are skipped for it."""
    lacking = dict.fromkeys(
        ["persistent", "flushed_is_visible", "thread_safe", "unicode_ids", "json_metadata", "ties_by_id"],
        False,
    )
    reports = run_kit(pytester, "Right", metrics=("ip",), **lacking)
    skipped = " ".join(report.longrepr[2] for report in reports.values() if report.skipped)
    assert all(f"TestStore.{name}" in skipped for name in (*lacking, "metrics"))
    assert not any(report.failed for report in reports.values())


def test_a_store_need_not_scan(pytester: pytest.Pytester) -> None:
    """Where a store has no scan, just the tests of it are skipped, and name the protocol."""
    reports = run_kit(pytester, "CannotScan", f"a_scan or {ALL}")
    reason = "Skipped: CannotScan has no scan (ScannableStore)"
    named = {name for name in reports if "a_scan_" in name}
    skipped = {name for name, each in reports.items() if each.skipped and each.longrepr[2] == reason}
    assert len(named) > 10
    assert named <= skipped
    assert not any(report.failed for report in reports.values())


def test_a_store_need_not_count_labels(pytester: pytest.Pytester) -> None:
    """Where a store's count takes no label, just the tests of that are skipped."""
    reports = run_kit(pytester, "CountsNoLabels", f"a_count or {ALL}")
    reason = "Skipped: CountsNoLabels counts no labels (its count takes none)"
    skipped = {name for name, each in reports.items() if each.skipped and each.longrepr[2] == reason}
    assert skipped == {name for name in reports if "a_count_" in name}
    assert len(skipped) > 5
    assert not any(report.failed for report in reports.values())


def test_a_store_need_not_keep_bytes(pytester: pytest.Pytester) -> None:
    """Where a store keeps no blobs, just the tests of them are skipped, and name the protocol."""
    reports = run_kit(pytester, "KeepsNoBlobs", f"blob or {ALL}")
    reason = "Skipped: KeepsNoBlobs keeps no blobs (BlobStore)"
    skipped = {name for name, each in reports.items() if each.skipped and each.longrepr[2] == reason}
    assert len(skipped) > 10
    assert {name for name in reports if name not in skipped} == {
        f"{ALL}[{metric}]" for metric in ("l2", "cosine", "ip")
    }
    assert not any(report.failed for report in reports.values())


def test_the_hook_must_be_overridden(pytester: pytest.Pytester) -> None:
    """Without open_store, every test fails with a message that names it."""
    pytester.makepyfile(
        "from clipretrieval.testing import VectorStoreTests\nclass TestNothing(VectorStoreTests): pass"
    )
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-k", "count_counts")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*TestNothing must override open_store*"])


@pytest.mark.parametrize("package", ["pytest", "hypothesis"])
def test_a_missing_package_is_named(package: str) -> None:
    """Where pytest or Hypothesis is missing, the error gives the pip command; the package itself imports."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import clipretrieval.testing as testing\n"
        "from clipretrieval import MissingDependencyError\n"
        "try: testing.VectorStoreTests\n"
        "except MissingDependencyError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert repr(package) in done.stdout
    assert "pip install pytest hypothesis" in done.stdout


def test_every_part_shows_the_values_of_its_asserts() -> None:
    """All modules of the suite are rewritten by pytest, so a failed assert shows what it compared."""
    paths = sorted(Path(contracts.__file__).parent.glob("[a-z]*.py"))
    assert len(paths) > 5
    for path in paths:
        module = importlib.import_module(f"clipretrieval.testing.contracts.{path.stem}")
        assert type(module.__loader__).__name__ == "AssertionRewritingHook", path.name
