"""Write the stores and saved classifiers that `test_compatibility.py` opens, and what they answered.

They are those of commit f0ac6ce, and are not to be made anew by a later one: a version that reads only what
it wrote itself would pass. To add a kind of fixture, write it with that commit's library::

    git worktree add /tmp/f0ac6ce f0ac6ce
    PYTHONPATH=/tmp/f0ac6ce python tests/compatibility/make_fixtures.py

Fixtures that are there already are left as they are.

All coordinates are small integers: sums of their products are exact in float32 and float64 alike, so that
squared distances and inner products have the same bits on every processor. Vectors lie in clusters that are
far apart, and queries are those whose k-th neighbour is much nearer than the next, so that an approximate
index finds the same ones however its sums are rounded; that it finds the true ones is checked here.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from recorded import (
    ANSWERS,
    FIXTURES,
    classifier_answers,
    report_values,
    store_answers,
    write,
)

import clipretrieval
from clipretrieval import ClipRetrievalWarning, RetrievalClassifier, StagedEncoder
from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore

DIM, CLUSTERS, K = 8, 20, 5
RNG = np.random.default_rng(2024)
CENTRES = RNG.integers(-100, 101, (CLUSTERS, DIM))
LOCKS = ("LOCK", "clipretrieval.lock")


def clustered(count: int, seed: int) -> tuple[Any, list[int]]:
    """Different vectors of integers about the centres, and the number of each one's centre."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(count) % CLUSTERS
    rows = CENTRES[numbers] + rng.integers(-9, 10, (count, DIM))
    assert len(np.unique(rows, axis=0)) == count
    return rows.astype(np.float32), numbers.tolist()


def choose_queries(rows: Any, metric: str, k: int = K, count: int = 12) -> list[list[int]]:
    """Queries that are stored nowhere, whose k nearest are told from the others by far."""
    drawn, _ = clustered(400, 999)
    drawn = drawn[~(drawn[:, None] == rows[None]).all(axis=2).any(axis=1)]
    truth = MemoryStore(metric)
    truth.upsert([str(place) for place in range(len(rows))], rows, [0] * len(rows))
    found = truth.search(drawn, k + 1).distances.astype(np.float64)
    gaps = (found[:, k] - found[:, k - 1]) / np.abs(found[:, k - 1]).clip(1e-6)
    if metric == "cosine":  # whose distances are rounded: neighbours must be apart from each other, too
        gaps = np.diff(found, axis=1).min(axis=1)
    # Of each cluster at most one.
    order, taken, chosen = np.argsort(-gaps), set[int](), list[int]()
    for place in order.tolist():
        centre = int(np.square(CENTRES - drawn[place]).sum(axis=1).argmin())
        if centre not in taken:
            taken.add(centre)
            chosen.append(place)
    queries: list[list[int]] = drawn[chosen[:count]].astype(int).tolist()
    return queries


def check_true(store: Any, queries: Any, k: int) -> None:
    """Check that a store's answers are those of an exact search."""
    ids = sorted(name for part in store.scan() for name in part.ids.tolist())
    held, truth = store.get(ids), MemoryStore(store.metric)
    truth.upsert(ids, held.vectors, held.labels.tolist())
    given = np.array(queries, dtype=np.float32)
    near, expected = store.search(given, k), truth.search(given, k)
    assert near.ids.tolist() == expected.ids.tolist(), "an approximate answer: choose other data"


def named(count: int, start: int = 0) -> list[str]:
    return [f"{place:04}" for place in range(start, start + count)]


def notes(count: int) -> list[dict[str, Any]]:
    """Metadata of every third record."""
    return [
        {"page": place, "tags": ["a", "ä"], "of": {"x": None, "y": place / 4}} if place % 3 == 0 else {}
        for place in range(count)
    ]


def fill_once(store: Any, count: int = 60, *, text: bool = False) -> None:
    rows, numbers = clustered(count, 1)
    labels = [f"class {number}" for number in numbers] if text else numbers
    store.upsert(named(count), rows, labels, notes(count))
    store.write_manifest({"made by": "hand", "numbers": [1, 2.5, None]})


def fill_in_turns(store: Any, count: int = 60, *, text: bool = False) -> None:
    """Several writes with a flush each: additions, replacements, removals."""
    fill_once(store, count, text=text)
    store.flush()
    rows, numbers = clustered(40, 2)
    more = [f"label {number}" if text else -number for number in numbers]
    store.upsert(named(20, count - 10), rows[:20], more[:20], [{"turn": 2}] * 20)  # ten of them replace
    store.flush()
    assert store.delete([*named(7, 3), named(1, count)[0], "unknown"]) == 8
    store.flush()
    store.upsert(
        ["ü/ß", "a b", "\U0001f5bc", *named(2, 4)], rows[20:25], more[20:25], [{"turn": 4, "ü": "ß"}] * 5
    )
    store.write_manifest({"turn": 4})


def fill_with_outliers(store: Any) -> None:
    """Vectors outside of the range that an index's codes were trained on."""
    fill_once(store, 1000)
    store.flush()
    rows, numbers = clustered(20, 3)
    store.upsert([f"far {place:02}" for place in range(20)], rows + 3000, numbers)
    store.flush()
    assert store.index_info.outliers > 0


def make_store(
    name: str,
    kind: str,
    open_at: Callable[[Path], Any],
    fill: Callable[[Any], None],
    *,
    extra: list[list[int]] | None = None,
) -> None:
    """Fill a store, close it, and record what it answers when it is opened again."""
    target = FIXTURES / "stores" / name
    if target.exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / name / "store"
        place.parent.mkdir()
        with open_at(place) as store:
            fill(store)
            if isinstance(store, MemoryStore):
                store.save(place)
        metric = str(store.metric)
        copied = Path(folder) / "copy"
        shutil.copytree(place, copied)  # to be opened, which leaves traces
        with reopened(kind, copied, metric) as store:
            ids = sorted(name for part in store.scan() for name in part.ids.tolist())
            rows = store.get(ids).vectors if ids else np.empty((0, DIM), dtype=np.float32)
            queries = [*(choose_queries(rows, metric) if ids else []), *(extra or [])]
            some = [*ids[:12][::-1], "unknown", *ids[-8:]]
            if ids:
                check_true(store, queries, K)
            content = {"kind": kind, "metric": metric, "k": K, "queries": queries, "some": some}
            content["index"] = index_of(store)
            # Cosines are rounded, on other processors perhaps otherwise.
            content["exact"] = metric != "cosine"
            write(place.parent / ANSWERS, {**content, "answers": store_answers(store, queries, K, some)})
        finish(place.parent, target)


def index_of(store: Any) -> dict[str, Any] | None:
    """What a FAISS store says of its index."""
    return dict(vars(store.index_info)) if isinstance(store, FaissStore) else None


def reopened(kind: str, place: Path, metric: str) -> Any:
    if kind == "memory":
        return MemoryStore.load(place)
    return (FaissStore if kind == "faiss" else ChromaStore)(place, metric=metric, create=False)


def finish(made: Path, target: Path) -> None:
    """Remove lock files and move what was made into its place, if it names no place outside of it."""
    for file in made.rglob("*"):
        if file.name in LOCKS:
            file.unlink()
    for file in (file for file in made.rglob("*") if file.is_file()):
        content = file.read_bytes()
        for outside in (tempfile.gettempdir(), str(Path.home()), str(Path.cwd())):
            # The bytes of a number may happen to be those of a short path.
            if len(outside) > 3 and outside.encode() + b"/" in content:
                raise SystemExit(f"{file} holds the path {outside}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, target)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target.relative_to(FIXTURES)}: {size / 1024:.0f} KiB")


def make_stores() -> None:
    """Write one store of each kind."""

    def faiss(metric: str = "l2", **options: Any) -> Callable[[Path], Any]:
        return lambda place: FaissStore(place, metric=metric, **options)

    def chroma(metric: str = "l2") -> Callable[[Path], Any]:
        return lambda place: ChromaStore(place, metric=metric)

    make_store("memory-l2", "memory", lambda _: MemoryStore(), fill_in_turns)
    make_store("memory-cosine", "memory", lambda _: MemoryStore("cosine"), lambda s: fill_once(s, text=True))
    make_store("flat-l2", "faiss", faiss(index="Flat"), fill_once)
    make_store("flat-cosine", "faiss", faiss("cosine"), lambda store: fill_once(store, text=True))
    make_store("flat-ip", "faiss", faiss("ip"), fill_once)
    make_store("flat-changed", "faiss", faiss(), lambda store: fill_in_turns(store, text=True))
    make_store("flat-empty", "faiss", faiss(), lambda store: store.write_manifest({"nothing": []}))
    make_store("lists", "faiss", faiss(index="IVF16,Flat"), lambda store: fill_once(store, 1000))
    make_store("lists-cosine", "faiss", faiss("cosine", index="IVF16,SQ8"), lambda s: fill_once(s, 1000))
    make_store("lists-changed", "faiss", faiss(index="IVF16,SQ8"), lambda s: fill_in_turns(s, 1010))
    make_store("graph", "faiss", faiss(index="HNSW8"), lambda store: fill_once(store, 1000, text=True))
    make_store("graph-ip", "faiss", faiss("ip", index="HNSW8", recall=0.9), lambda s: fill_once(s, 1000))
    make_store("graph-changed", "faiss", faiss(index="HNSW8"), lambda s: fill_in_turns(s, 1010))
    make_store("codes", "faiss", faiss(index="SQ8"), lambda store: fill_once(store, 1000))
    make_store(
        "codes-products", "faiss", faiss(index="PQ8x4", recall=0.9999), lambda store: fill_once(store, 1000)
    )
    far, _ = clustered(3, 4)
    make_store(
        "outliers",
        "faiss",
        faiss(index="IVF16,SQ8"),
        fill_with_outliers,
        extra=(far + 3000).astype(int).tolist(),
    )
    make_store("chroma-l2", "chroma", chroma(), lambda store: fill_in_turns(store, text=True))
    make_store("chroma-cosine", "chroma", chroma("cosine"), fill_once)


def make_classifier(
    name: str,
    X: Any,
    y: list[Any],
    queries: Any,
    *,
    more: tuple[Any, list[Any]],
    inside: str | None = None,
    exact: bool = True,
    changes: Callable[[RetrievalClassifier], None] | None = None,
    **params: Any,
) -> None:
    """Fit and save a classifier, and record what it answers when it is loaded.

    Parameters
    ----------
    name : str
    X, y : to fit on
    queries : list of list of int, or list of images
    more : (X, y)
        What the test adds; of images their number.
    inside : str, optional
        The store's folder, below the saved classifier's.
    exact : bool
        Whether all answers have the same bits on every processor.
    changes : callable, optional
        Changes the fitted classifier before it is saved.
    **params
        As for `RetrievalClassifier`.
    """
    target = FIXTURES / "classifiers" / name
    if target.exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / name
        place = made / "classifier"
        made.mkdir()
        if inside is not None:
            place.mkdir()
            params["store_options"] = {**params.get("store_options", {}), "path": str(place / inside)}
        classifier = RetrievalClassifier(**params).fit(X, y)
        if changes is not None:
            changes(classifier)
        classifier.save(place)
        classifier.store_.close()
        copied = Path(folder) / "copy"
        shutil.copytree(place, copied)
        loaded = RetrievalClassifier.load(copied)
        images = "encoder" in params
        if images:
            for part, pictures in (("queries", queries), ("more", more[0])):
                (made / part).mkdir()
                for number, picture in enumerate(pictures):
                    picture.save(made / part / f"{number:02}.png")
            queries = [made / "queries" / f"{number:02}.png" for number in range(len(queries))]
        else:
            check_true(loaded.store_, scaled(queries, loaded.normalize), loaded.k)
        content: dict[str, Any] = {
            "images": images,
            "inside": {"name": params["store"], "folder": inside} if inside is not None else None,
            "exact": exact,
            "index": index_of(loaded.store_),
            "queries": None if images else queries,
            "more": {"X": None if images else more[0], "y": more[1]},
            "feature_names": plain_names(loaded),
        }
        asked = as_frame(queries, content["feature_names"])
        content["answers"] = classifier_answers(loaded, asked)
        # Half of the labels are wrong, so that there are mistakes to report.
        true = content["answers"]["predict"]
        true = [label if place % 2 else true[0] for place, label in enumerate(true)]
        content["true"] = true
        content["report"] = None if images else report_values(loaded.evaluate(asked, true))
        loaded.store_.close()
        write(made / ANSWERS, content)
        finish(made, target)


def scaled(queries: Any, normalize: bool) -> Any:
    rows = np.array(queries, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalize else rows


def plain_names(classifier: RetrievalClassifier) -> list[str] | None:
    names = getattr(classifier, "feature_names_in_", None)
    return None if names is None else list(names)


def as_frame(rows: Any, names: list[str] | None) -> Any:
    if names is None:
        return rows
    from pandas import DataFrame

    return DataFrame(np.array(rows, dtype=np.float32), columns=names)


def pictures(count: int, seed: int) -> tuple[list[Image.Image], list[int]]:
    """Pictures of one big block of colour each, of the size that the ``pixel`` stage takes: not resampled."""
    rng = np.random.default_rng(seed)
    colours = np.array([(230, 30, 40), (30, 200, 60), (40, 60, 220), (240, 240, 10)])
    images, numbers = [], []
    for place in range(count):
        canvas = np.full((32, 32, 3), rng.integers(90, 130), dtype=np.uint8)
        top, left = rng.integers(0, 12, 2)
        canvas[top : top + 18, left : left + 18] = colours[place % 4] + rng.integers(-10, 11, 3)
        images.append(Image.fromarray(canvas))
        numbers.append(place % 4)
    return images, numbers


def make_classifiers() -> None:
    """Write one classifier over each kind of store, with each kind of label, rule and metric."""
    few, numbers = clustered(60, 5)
    many, many_numbers = clustered(1000, 6)
    words = [f"class {number}" for number in numbers]
    text = [f"class {number}" for number in many_numbers]
    added = (CENTRES[0] // 2 + np.arange(3)[:, None]).tolist()
    new_number, new_word = (added, [99] * 3), (added, ["new"] * 3)

    def changed(classifier: RetrievalClassifier) -> None:
        classifier.partial_fit(many[100:104], ["later"] * 4)
        classifier.forget(label="class 3")
        classifier.relabel(classifier.kneighbors(few[:1], 1).ids[0].tolist(), ["corrected"])

    def ask(rows: Any, metric: str, k: int) -> Any:
        return choose_queries(rows, metric, k)

    make_classifier("memory-int", few, numbers, ask(few, "l2", 3), more=new_number, store="memory", k=3)
    make_classifier(
        "memory-bool",
        few,
        [number > 9 for number in numbers],
        ask(few, "l2", 3),
        more=(added, [True] * 3),
        store="memory",
        k=3,
        weights="distance",
        exact=False,
    )
    make_classifier(
        "memory-float",
        few,
        [float(number) for number in numbers],
        ask(few, "l2", 1),
        more=(added, [99.0] * 3),
        store="memory",
    )
    from pandas import DataFrame

    columns = [f"feature {place}" for place in range(DIM)]
    make_classifier(
        "memory-named-features",
        DataFrame(few, columns=columns),
        words,
        ask(few, "ip", 3),
        more=new_word,
        store="memory",
        k=3,
        metric="ip",
        weights="softmax",
        temperature=500.0,
        exact=False,
    )
    make_classifier(
        "flat-copy",
        few,
        words,
        ask(few, "l2", 5),
        more=new_word,
        store="faiss",
        k=5,
        weights="distance",
        exact=False,
    )
    make_classifier(
        "flat-changed", few, words, ask(few, "l2", 3), more=new_word, store="faiss", k=3, changes=changed
    )
    make_classifier(
        "flat-inside",
        few,
        words,
        ask(few, "cosine", 5),
        more=new_word,
        inside="vectors",
        store="faiss",
        k=5,
        metric="cosine",
        weights="softmax",
        exact=False,
    )
    make_classifier(
        "flat-normalized",
        few,
        numbers,
        ask(few, "cosine", 5),
        more=new_number,
        store="faiss",
        k=5,
        weights="softmax",
        temperature=0.2,
        normalize=True,
        exact=False,
    )
    make_classifier(
        "lists",
        many,
        many_numbers,
        ask(many, "l2", 5),
        more=new_number,
        store="faiss",
        store_options={"index": "IVF16,SQ8"},
        k=5,
    )
    make_classifier(
        "graph",
        many,
        text,
        ask(many, "ip", 5),
        more=new_word,
        inside="vectors",
        store="faiss",
        store_options={"index": "HNSW8", "recall": 0.9},
        k=5,
        metric="ip",
    )
    make_classifier(
        "chroma", few, words, ask(few, "l2", 3), more=new_word, inside="vectors", store="chroma", k=3
    )
    images, labels = pictures(8, 0)
    asked, _ = pictures(4, 1)
    other, _ = pictures(2, 2)
    blue = [image.transpose(Image.Transpose.ROTATE_90).convert("L").convert("RGB") for image in other]
    make_classifier(
        "pixel-int",
        images,
        labels,
        asked,
        more=(blue, [99, 99]),
        encoder=StagedEncoder(stage="pixel"),
        store="memory",
        k=3,
        exact=False,
    )
    make_classifier(
        "pixel-str",
        images,
        [("red", "green", "blue", "yellow")[label] for label in labels],
        asked,
        more=(blue, ["grey", "grey"]),
        encoder=StagedEncoder(stage="pixel"),
        store="faiss",
        metric="cosine",
        k=5,
        weights="softmax",
        exact=False,
    )


def main() -> None:
    """Write what is not there yet."""
    warnings.simplefilter("error", ClipRetrievalWarning)  # of an index that misses its recall, say
    print(f"with clipretrieval from {Path(clipretrieval.__file__).parent}", file=sys.stderr)
    make_stores()
    make_classifiers()


if __name__ == "__main__":
    main()
