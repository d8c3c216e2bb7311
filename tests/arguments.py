"""Calls of everything that users call, with one argument after another made strange."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.base import clone

from clipretrieval import (
    AuditReport,
    CascadeClassifier,
    ClipRetrievalError,
    FunctionEncoder,
    OnnxEncoder,
    RetrievalClassifier,
    StagedEncoder,
    ZeroShotClassifier,
    audit,
    compare,
    demo,
    explanation,
    heads,
    images,
    prompts,
    recommend,
    trust,
    types,
    vectors,
)
from clipretrieval.auditing import Decisions, apply_decisions
from clipretrieval.comparison import reproduction
from clipretrieval.evaluation.page import render as page
from clipretrieval.heads import weighting
from clipretrieval.persistence import saving
from clipretrieval.stores import ChromaStore, FaissStore, LanceStore, MemoryStore, registry

LONG = "long" * 1100

STRANGE: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "-1": lambda: -1,
    "1.5": lambda: 1.5,
    "NaN": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "10**30": lambda: 10**30,
    "10**400": lambda: 10**400,
    "complex": lambda: 1j,
    "empty text": lambda: "",
    "word": lambda: "no",
    "NUL": lambda: "a\0b",
    "surrogate": lambda: "\ud800",
    "long text": lambda: LONG,
    "no parent": lambda: "missing/folder/name",
    "path": lambda: Path("missing"),
    "bytes": lambda: b"xy",
    "object": lambda: object(),
    "class": lambda: int,
    "function": lambda: lambda *_: 0,
    "empty list": list,
    "list of int": lambda: [1, 2],
    "list of str": lambda: ["a", "b"],
    "list of None": lambda: [None, None],
    "ragged list": lambda: [[1], [2, 3]],
    "empty dict": dict,
    "dict": lambda: {"a": 1, "b": 2},
    "dict of arrays": lambda: {"a": np.arange(2)},
    "set": lambda: {"a", "b"},
    "generator": lambda: (letter for letter in "ab"),
    "array": lambda: np.array([1.0, 2.0]),
    "0-D array": lambda: np.array(1.0),
    "array of str": lambda: np.array(["a", "b"]),
    "array of object": lambda: np.array([{}, None], dtype=object),
    "empty array": lambda: np.empty((0, 2)),
    "huge floats": lambda: np.array([[1e300, 0.0]]),
    "DataFrame": lambda: pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}),
    "Series": lambda: pd.Series(["a", "b"]),
    "open file": lambda: open(__file__, encoding="utf-8"),  # noqa: SIM115
}

NOTHING: frozenset[str] = frozenset()
NONE = frozenset({"None"})
SWITCH = frozenset({"True", "False"})
NATURAL = frozenset({"0"})
TEXTS = frozenset({"word", "NUL", "surrogate", "long text", "no parent", "empty text"})
"""Text that is shown, or compared, and never a path."""
WRITABLE = frozenset({"word", "path"})
"""Names of files that can be written in an empty folder."""
WORDS = frozenset({"list of str", "array of str", "Series", "generator"})
"""Sequences of two labels or ids, all str."""
NUMBERS = frozenset({"list of int", "array"})
"""Sequences of two numbers."""
PROGRESS = NONE | SWITCH | {"function"}
TABLE = frozenset({"DataFrame"})
SCALE = frozenset({"0"})
"""Numbers from 0 to 1."""
SCALARS = frozenset({"0", "-1"})
ANY = frozenset(STRANGE)


@dataclass
class Call:
    """One public callable with valid arguments.

    Attributes
    ----------
    name : str
    make : callable
        Returns what is called and its valid arguments, made anew each time, as calls may change them.
    takes : dict
        For each parameter the names of strange values that it rightly takes.
    type_errors : set of str
        Parameters for which scikit-learn's own conventions ask for a TypeError.
    left_out : set of str
        Parameters that are not checked here.
    """

    name: str
    make: Callable[[], tuple[Callable[..., Any], dict[str, Any]]]
    takes: dict[str, frozenset[str]] = field(default_factory=dict)
    type_errors: frozenset[str] = NOTHING
    left_out: frozenset[str] = NOTHING

    def parameters(self) -> list[str]:
        called, arguments = self.make()
        shown = inspect.signature(called).parameters.values()
        named = [each.name for each in shown if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        return [
            name
            for name in dict.fromkeys([*named, *arguments])
            if name not in self.left_out and not name.startswith("_")
        ]


@dataclass(frozen=True)
class Outcome:
    """What became of one strange argument: ``"ours"``, ``"accepted"``, or the name of a bare error."""

    call: str
    parameter: str
    value: str
    kind: str
    message: str = ""

    def __str__(self) -> str:
        return f"{self.call}({self.parameter}={self.value}): {self.kind} {self.message}"


def try_call(call: Call) -> Iterator[Outcome]:
    """Make each parameter strange in every way, the others staying valid."""
    for parameter in call.parameters():
        for name, value in STRANGE.items():
            called, arguments = call.make()
            given = value()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = called(**{**arguments, parameter: given})
                    if isinstance(found, Iterator):
                        list(islice(found, 4))
            except ClipRetrievalError as error:
                yield Outcome(call.name, parameter, name, "ours", str(error))
            except (Exception, SystemExit) as error:  # noqa: BLE001
                yield Outcome(call.name, parameter, name, type(error).__name__, str(error)[:100])
            else:
                yield Outcome(call.name, parameter, name, "accepted")
            finally:
                if hasattr(given, "close"):
                    given.close()


def is_right(call: Call, outcome: Outcome) -> bool:
    """Whether an outcome is an error of ours, a TypeError by convention, or an accepted value that may be."""
    if outcome.kind == "ours":
        return True
    if outcome.kind == "TypeError":
        return outcome.parameter in call.type_errors
    return outcome.kind == "accepted" and outcome.value in call.takes.get(outcome.parameter, NOTHING)


ROWS = [[0.0, 0.0], [1.0, 1.0], [4.0, 4.0]]
LABELS = ["a", "b", "b"]
PICTURES = [np.full((8, 8, 3), tone, dtype=np.uint8) for tone in (0, 90, 200)]


def calls(tiny_model: str, folder: Path) -> list[Call]:
    """List everything that users call, with arguments that are right."""
    pixel = StagedEncoder(tiny_model, stage="pixel")
    tiny = StagedEncoder(tiny_model, stage="mid", precision="fp32", batch_size=2)
    on_vectors = RetrievalClassifier(store="memory").fit(ROWS, LABELS)
    on_pictures = RetrievalClassifier(pixel, "memory").fit(PICTURES, LABELS)
    saved, kept, pages = folder / "saved", folder / "store", folder / "pictures"
    on_vectors.save(saved)
    on_vectors.store_.save(kept)
    on_faiss = FaissStore(folder / "faiss")
    on_faiss.upsert(["x"], [[0.0, 1.0]], ["a"])
    on_faiss.close()
    pages.mkdir()
    for number, picture in enumerate(PICTURES):
        (pages / LABELS[number]).mkdir(exist_ok=True)
        Image.fromarray(picture).save(pages / LABELS[number] / f"{number}.png")
    scanned = images.scan_folder(pages)
    report = on_vectors.evaluate([[0.2, 0.0], [3.0, 3.0]], ["a", "a"], mistakes=0)
    zero_shot = ZeroShotClassifier(tiny, ["cat", "dog"])
    zero_shot.predict(PICTURES[:1])
    begun = tiny.begin(PICTURES[:2], "stem")

    def of_classifier(method: str, classifier: RetrievalClassifier = on_vectors, **given: Any) -> Any:
        def make() -> tuple[Any, dict[str, Any]]:
            mine = copy.copy(classifier)
            mine.store_ = copy.deepcopy(classifier.store_)
            return getattr(mine, method), dict(given)

        return make

    def constructed(**given: Any) -> Any:
        def fit(
            encoder: Any = None,
            store: Any = "memory",
            k: Any = 1,
            weights: Any = "uniform",
            temperature: Any = 0.07,
            head: Any = "votes",
            priors: Any = "equal",
            metric: Any = "l2",
            normalize: Any = False,
            store_options: Any = None,
        ) -> Any:
            return RetrievalClassifier(
                encoder,
                store,
                k=k,
                weights=weights,
                temperature=temperature,
                head=head,
                priors=priors,
                metric=metric,
                normalize=normalize,
                store_options=store_options,
            ).fit(ROWS, LABELS)

        return lambda: (fit, given)

    def of_store(kind: Any, method: str, **given: Any) -> Any:
        def make() -> tuple[Any, dict[str, Any]]:
            store = kind()
            store.upsert(["x", "y"], [[0.0, 1.0], [1.0, 0.0]], ["a", "b"])
            return getattr(store, method), dict(given)

        return make

    def opened(kind: Any, **given: Any) -> Any:
        def open_and_close(**arguments: Any) -> None:
            kind(**arguments).close()

        open_and_close.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]
        return lambda: (open_and_close, given)

    def plain(called: Any, **given: Any) -> Any:
        return lambda: (called, dict(given))

    def adopted() -> tuple[Any, dict[str, Any]]:
        store = MemoryStore()
        store.upsert(["x", "y"], [[0.0, 1.0], [1.0, 0.0]], ["a", "b"])
        return RetrievalClassifier.adopt_store, {"store": store, "encoder": None}

    @cache
    def exported() -> Path:
        return tiny.export(folder / "tiny.onnx")

    @cache
    def searched() -> RetrievalClassifier:
        return RetrievalClassifier(StagedEncoder(tiny_model, stage="final"), "memory").fit(PICTURES, LABELS)

    def encoded(**given: Any) -> Any:
        def encode(
            model: Any = tiny_model,
            pretrained: Any = None,
            stage: Any = "pixel",
            pooling: Any = "mean",
            image_size: Any = None,
            precision: Any = "fp32",
            device: Any = "cpu",
            batch_size: Any = 2,
            compile: Any = False,  # noqa: A002
            seed: Any = 0,
        ) -> Any:
            return StagedEncoder(
                model,
                pretrained,
                stage,
                pooling=pooling,
                image_size=image_size,
                precision=precision,
                device=device,
                batch_size=batch_size,
                compile=compile,
                seed=seed,
            )

        return lambda: (encode, given)

    learning = {
        "overwrite": SWITCH,
        "resume": SWITCH,
        "flush_every": NONE,
        "on_error": NOTHING,
        "progress": PROGRESS,
        "X": TABLE,
        "y": WORDS | TABLE,
    }
    asking = {"on_error": NOTHING, "progress": PROGRESS, "X": TABLE, "y": WORDS | TABLE}
    upsert = {"ids": WORDS, "labels": WORDS | {"list of int"}, "metadata": NONE}
    some_labels = WORDS | {"list of int", "array"}
    found: list[Call] = [
        Call(
            "RetrievalClassifier",
            constructed(),
            {
                "encoder": NONE,
                "weights": frozenset({"function"}),
                "normalize": SWITCH,
                "temperature": frozenset({"1.5", "10**30"}),
                "priors": NUMBERS,
                "store_options": NONE | {"empty dict"},
            },
        ),
        Call(
            "fit",
            of_classifier("fit", X=ROWS, y=LABELS, overwrite=True),
            learning | {"overwrite": SWITCH},
            frozenset({"X"}),
        ),
        Call(
            "fit pictures", of_classifier("fit", on_pictures, X=PICTURES, y=LABELS, overwrite=True), learning
        ),
        Call(
            "partial_fit",
            of_classifier("partial_fit", X=ROWS[:2], y=LABELS[:2]),
            learning | {"classes": NONE | WORDS | {"empty list", "empty array"}, "y": WORDS | TABLE},
            frozenset({"X"}),
        ),
        Call(
            "partial_fit pictures",
            of_classifier("partial_fit", on_pictures, X=PICTURES[:2], y=LABELS[:2]),
            learning | {"classes": NONE | WORDS | {"empty list", "empty array"}, "y": WORDS | TABLE},
        ),
    ]
    for kind, classifier, some in (("", on_vectors, ROWS[:2]), (" pictures", on_pictures, PICTURES[:2])):
        conventions = frozenset({"X"}) if not kind else NOTHING
        found += [
            Call(f"predict{kind}", of_classifier("predict", classifier, X=some), asking, conventions),
            Call(
                f"predict_proba{kind}",
                of_classifier("predict_proba", classifier, X=some),
                asking | {"sparse": SWITCH},
                conventions,
            ),
            Call(
                f"kneighbors{kind}",
                of_classifier("kneighbors", classifier, X=some),
                asking | {"k": NONE},
                conventions,
            ),
            Call(
                f"explain{kind}",
                of_classifier("explain", classifier, X=some),
                asking | {"k": NONE},
                conventions,
            ),
            Call(
                f"evaluate{kind}",
                of_classifier("evaluate", classifier, X=some, y=LABELS[:2]),
                asking | {"allow_tuned": SWITCH, "mistakes": NATURAL, "unknown_images": NONE | TABLE},
                conventions | ({"unknown_images"} if conventions else NOTHING),
            ),
            Call(
                f"score_samples{kind}",
                of_classifier("score_samples", classifier, X=some),
                asking,
                conventions,
            ),
            Call(
                f"score{kind}",
                of_classifier("score", classifier, X=some, y=LABELS[:2]),
                asking | {"allow_tuned": SWITCH, "sample_weight": NONE | NUMBERS},
                conventions,
            ),
            Call(
                f"sweep{kind}",
                of_classifier(
                    "sweep", classifier, X=some, y=LABELS[:2], validation="all", k=1, allow_known=True
                ),
                asking
                | {
                    "head": NONE,
                    "k": frozenset({"list of int"}),
                    "temperature": frozenset({"1.5", "10**30", "list of int", "array"}),
                    "allow_known": SWITCH,
                    "validation": NONE,
                    "seed": frozenset({"0", "-1", "10**30", "10**400"}),
                },
                conventions,
            ),
        ]
    new_rows, new_pictures = [[0.5, 0.5], [3.0, 3.0]], [255 - each for each in PICTURES[:2]]
    promising = copy.copy(on_vectors).conformalize(new_rows * 2, LABELS[:2] * 2)
    for kind, classifier, some in (("", on_vectors, new_rows), (" pictures", on_pictures, new_pictures)):
        conventions = frozenset({"X"}) if not kind else NOTHING
        found += [
            Call(
                f"conformalize{kind}",
                of_classifier("conformalize", classifier, X=some, y=LABELS[:2]),
                asking
                | {
                    "class_conditional": SWITCH,
                    "randomized": SWITCH,
                    "random_state": frozenset({"0", "10**30", "10**400"}),
                    "penalty": NONE,
                    "free_classes": NONE,
                },
                conventions,
            ),
            Call(
                f"calibrate{kind}",
                of_classifier("calibrate", classifier, X=some, y=LABELS[:2]),
                asking,
                conventions,
            ),
        ]
    ids = on_vectors.kneighbors(ROWS).ids[:, 0].tolist()
    found += [
        Call(
            "predict_set",
            of_classifier("predict_set", promising, X=ROWS, coverage=0.5),
            asking,
            frozenset({"X"}),
        ),
        *(
            Call(
                name,
                of_classifier(name, **{"vectors": ROWS, "labels": LABELS, "ids": ["x", "y", "z"], **more}),
                {
                    **learning,
                    "vectors": TABLE,
                    "labels": some_labels & NOTHING,
                    "ids": NONE,
                    "encoder": NONE,
                    "column": NONE,
                    "classes": NONE | WORDS | {"empty list"},
                },
            )
            for name, more in (("fit_vectors", {"overwrite": True}), ("partial_fit_vectors", {}))
        ),
        Call(
            "export",
            of_classifier("export", path="vectors.parquet"),
            {"path": WRITABLE, "progress": PROGRESS},
        ),
        Call(
            "from_vectors",
            plain(
                RetrievalClassifier.from_vectors,
                store="memory",
                vectors=ROWS,
                labels=LABELS,
                ids=["x", "y", "z"],
            ),
            {
                **{key: value for key, value in learning.items() if key not in "Xy"},
                "vectors": TABLE,
                "ids": NONE,
                "encoder": NONE,
                "column": NONE,
            },
        ),
        Call("adopt_store", adopted, {"encoder": NONE}),
        Call(
            "merge_stores",
            lambda: (
                vectors.merge_stores,
                {"target": MemoryStore(), "shards": [on_vectors.store_], "on_conflict": "last"},
            ),
            {"progress": PROGRESS},
        ),
        Call(
            "encode",
            plain(
                vectors.encode,
                source=sorted(pages.rglob("*.png")),
                parts="parts",
                encoder=pixel,
                labels=LABELS,
                shards=1,
                shard=1,
            ),
            {
                "parts": WRITABLE | {"no parent"},
                "runner": frozenset({"function"}),  # the parts are there, so that it is not asked
                "labels": NONE,
                "shards": NONE,
                "shard": NONE,
                "replace": SWITCH,
                "progress": PROGRESS,
            },
        ),
        Call("set_predictor", of_classifier("set_predictor", promising, coverage=0.5)),
        Call("least_images", plain(trust.least_images, error=0.05)),
        Call("class_statistics", of_classifier("class_statistics")),
        Call("Discriminant", plain(heads.Discriminant), {"shrinkage": SCALE}),
        Call("Quadratic", plain(heads.Quadratic), {"pooling": SCALE, "shrinkage": SCALE}),
        Call("Ridge", plain(heads.Ridge), {"penalty": NONE | {"1.5", "10**30"}, "seed": NATURAL}),
        Call("Fused", plain(heads.Fused)),
        Call("RandomFeatures", plain(heads.RandomFeatures), {"seed": NATURAL}),
        Call("Whitening", plain(heads.Whitening), {"dim": NONE, "shrinkage": SCALE}),
        Call("Moments", plain(heads.Moments), {"per_class": SWITCH, "features": NONE}),
        Call("forget", of_classifier("forget", ids=ids[:1], label=None), {"label": NONE}),
        Call("forget a class", of_classifier("forget", label="a"), {"ids": NONE}),
        Call(
            "relabel",
            of_classifier("relabel", ids=ids[:2], labels=["a", "a"]),
            {"labels": WORDS | TEXTS | TABLE},
        ),
        Call(
            "save",
            of_classifier("save", path="saved"),
            {"path": WRITABLE | {"no parent"}, "overwrite": SWITCH},
        ),
        Call(
            "load",
            plain(RetrievalClassifier.load, path=saved),
            {"encoder": NONE, "store": NONE, "allow_remote": SWITCH},
        ),
        Call(
            "from_store",
            lambda: (RetrievalClassifier.from_store, {"store": on_vectors.store_, "k": 1}),
            {"encoder": NONE},
        ),
        Call(
            "save",
            lambda: (on_vectors.save, {"path": "saved"}),
            {"path": WRITABLE | {"no parent"}, "overwrite": SWITCH},
        ),
        Call(
            "saving.check_folder",
            plain(saving.check_folder, folder=Path("new")),
            {"folder": WRITABLE | {"no parent"}},
        ),
        Call(
            "explain_stream",
            lambda: (explanation.explain_stream, {"classifier": on_vectors, "X": ROWS}),
            {
                "k": NONE,
                "X": TABLE,
                "progress": PROGRESS,
                "coverage": NONE,
                "skipped": NONE | {"empty list", "list of int", "list of str", "list of None", "ragged list"},
            },
            frozenset({"X"}),
        ),
    ]
    found += calls_of_cascades(tiny, folder / "cascade", learning, asking)
    for kind in (MemoryStore, FaissStore):
        found += [
            Call(
                f"{kind.__name__}.upsert",
                of_store(kind, "upsert", ids=["u", "v"], vectors=[[1.0, 2.0], [3.0, 4.0]], labels=["a", "b"]),
                upsert | {"vectors": frozenset({"DataFrame"})},
            ),
            Call(
                f"{kind.__name__}.search",
                of_store(kind, "search", vectors=[[0.0, 1.0]], k=1),
                {"vectors": frozenset({"DataFrame"})},
            ),
            Call(
                f"{kind.__name__}.get",
                of_store(kind, "get", ids=["x"]),
                {"ids": WORDS | {"empty list", "empty array"}},
            ),
            Call(
                f"{kind.__name__}.delete",
                of_store(kind, "delete", ids=["x"]),
                {"ids": WORDS | {"empty list", "empty array"}},
            ),
            Call(
                f"{kind.__name__}.scan",
                of_store(kind, "scan", label="a"),
                {"label": NONE | SCALARS | TEXTS - {"surrogate"}},
            ),
            Call(
                f"{kind.__name__}.write_manifest",
                of_store(kind, "write_manifest", manifest={}),
                {"manifest": frozenset({"empty dict", "dict"})},
            ),
            Call(
                f"{kind.__name__}.save",
                of_store(kind, "save", path="copy"),
                {"path": WRITABLE | {"no parent"}},
            ),
        ]
    found += [
        Call("MemoryStore", opened(MemoryStore)),
        Call("MemoryStore.load", plain(MemoryStore.load, path=kept)),
        Call(
            "FaissStore",
            opened(FaissStore),
            {
                "path": NONE | WRITABLE | {"no parent"},
                "create": SWITCH,
                "read_only": frozenset({"False"}),
                "recall": NONE,
                "memory": NONE,
                "mmap": frozenset({"False"}),
            },
        ),
        Call(
            "FaissStore folder",
            opened(FaissStore, path=folder / "faiss"),
            {
                "path": NONE | WRITABLE | {"no parent"},
                "create": SWITCH,
                "read_only": SWITCH,
                "recall": NONE,
                "memory": NONE,
                "mmap": frozenset({"False"}),
            },
        ),
        Call(
            "FaissStore.load",
            plain(FaissStore.load, path=folder / "faiss"),
            {"read_only": SWITCH, "mmap": SWITCH},
        ),
        Call(
            "ChromaStore",
            opened(ChromaStore),
            {
                "path": NONE | WRITABLE | {"no parent"},
                "create": SWITCH,
                "host": NONE,
                "port": NONE,
                "ssl": frozenset({"False"}),
                "client": NONE,
                "exact": SWITCH,
                "exact_up_to": NONE | NATURAL | {"10**30", "10**400"},
            },
        ),
        Call(
            "LanceStore",
            opened(LanceStore),
            {
                "path": WRITABLE | {"no parent"},
                "uri": NONE,
                "storage_options": NONE | {"empty dict"},
                "table": frozenset({"word"}),
                "create": SWITCH,
                "exact_up_to": NATURAL,
                "timeout": frozenset({"1.5"}),
            },
        ),
        Call("create_store", plain(registry.create_store, name="memory", metric="l2")),
        Call(
            "register_store",
            plain(registry.register_store, name="kept", target=MemoryStore, extra=None),
            {"extra": NONE | TEXTS, "target": frozenset({"class"}), "name": TEXTS},
        ),
        Call("store_class", plain(registry.store_class, name="memory")),
        Call(
            "StagedEncoder",
            encoded(),
            {"pretrained": ANY, "image_size": NONE, "compile": SWITCH, "seed": NATURAL},
        ),
        Call(
            "StagedEncoder RN50",
            encoded(model="RN50"),
            {"pretrained": NONE, "image_size": NONE, "compile": SWITCH, "seed": NATURAL},
        ),
        Call("encode", lambda: (pixel.encode, {"images": PICTURES[:2]}), asking),
        Call(
            "encode_stages",
            lambda: (pixel.encode_stages, {"images": PICTURES[:2], "stages": ["pixel"]}),
            asking,
        ),
        Call(
            "stream",
            lambda: (pixel.stream, {"images": PICTURES[:2], "labels": LABELS[:2]}),
            {
                "labels": NONE
                | TABLE
                | WORDS
                | NUMBERS
                | {"list of None", "array of object", "generator", "ragged list"},
                "stages": NONE,
                "ahead": NONE,
                "skipped": NONE | {"empty list", "list of int", "list of str", "list of None", "ragged list"},
            },
            left_out=frozenset({"known"}),  # what the caller's own function returns, or raises, is its own
        ),
        Call(
            "OnnxEncoder",
            lambda: (OnnxEncoder, {"path": exported()}),
            {"threads": NONE, "max_pixels": NONE},
        ),
        Call(
            "FunctionEncoder",
            lambda: (
                FunctionEncoder,
                {"function": lambda images: [[1.0, 2.0] for _ in images], "name": "two", "version": 1},
            ),
            {
                "function": frozenset({"function"}),
                "name": frozenset({"word", "NUL", "no parent", "long text"}),
                "version": NATURAL | {"word", "NUL", "no parent", "long text"},
                "dim": NONE,
                "encode_text": NONE | {"function"},
                "max_pixels": NONE,
            },
        ),
        Call("set_output", lambda: (clone(pixel).set_output, {"transform": "default"}), {"transform": NONE}),
        Call("set_params", lambda: (clone(pixel).set_params, {"stage": "pixel", "pooling": "mean"})),
        Call("transform", lambda: (pixel.transform, {"X": PICTURES[:2]})),
        Call(
            "search_text",
            lambda: (searched().search_text, {"texts": "a cat", "k": 2, "templates": "a {}"}),
            {
                "texts": WORDS | {"word", "no parent", "NUL"},
                "templates": frozenset({"function"}),
            },
        ),
        Call("exported encode", lambda: (OnnxEncoder(exported()).encode, {"images": PICTURES[:2]}), asking),
        Call("begin", lambda: (tiny.begin, {"images": PICTURES[:2]}), {"stage": NONE}),
        Call(
            "advance",
            lambda: (begun.advance, {"stage": "mid", "rows": [0]}),
            {"rows": NONE},
        ),
        Call("fingerprint_of", lambda: (tiny.fingerprint_of, {"stage": "mid"})),
        Call(
            "from_config",
            lambda: (StagedEncoder.from_config, {"config": tiny.config()}),
            {"config": frozenset({"empty dict"})},
        ),
        Call(
            "text.encode",
            lambda: (tiny.text.encode, {"prompts": ["a cat"]}),
            {"prompts": WORDS | {"word", "NUL", "no parent", "empty text"}},
        ),
        Call(
            "ZeroShotClassifier",
            lambda: (
                lambda encoder=tiny, class_names=("a", "b"), templates="a {}", pretrained="openai": (
                    ZeroShotClassifier(encoder, class_names, templates=templates, pretrained=pretrained).fit()
                ),
                {},
            ),
            {"class_names": WORDS, "pretrained": ANY},
        ),
        Call("zero-shot predict", lambda: (zero_shot.predict, {"X": PICTURES[:2]}), asking),
        Call("zero-shot predict_proba", lambda: (zero_shot.predict_proba, {"X": PICTURES[:2]}), asking),
        Call(
            "zero-shot evaluate",
            lambda: (zero_shot.evaluate, {"X": PICTURES[:2], "y": ["cat", "dog"]}),
            asking | {"allow_tuned": SWITCH},
        ),
        Call(
            "zero-shot score",
            lambda: (zero_shot.score, {"X": PICTURES[:2], "y": ["cat", "dog"]}),
            asking | {"allow_tuned": SWITCH, "sample_weight": NONE | NUMBERS},
        ),
        Call("cosines", lambda: (zero_shot.cosines, {"vectors": np.ones((2, 24), np.float32)})),
        Call(
            "iter_images",
            lambda: (images.iter_images, {"images": PICTURES[:2], "labels": LABELS[:2]}),
            {
                "max_pixels": NONE,
                "labels": NONE | TABLE | some_labels | {"list of None", "array of object", "ragged list"},
                "skipped": NONE | {"empty list", "list of int", "list of str", "list of None", "ragged list"},
            },
        ),
        Call(
            "iter_raw",
            lambda: (images.iter_raw, {"images": PICTURES[:2], "labels": LABELS[:2]}),
            {
                "images": WORDS | TABLE,
                "labels": NONE | TABLE | some_labels | {"list of None", "array of object", "ragged list"},
            },
        ),
        Call("count_hint", lambda: (images.count_hint, {"images": PICTURES[:2]}), {"images": ANY}),
        Call("scan_folder", lambda: (images.scan_folder, {"path": pages})),
        Call("to_rgb", lambda: (images.to_rgb, {"image": PICTURES[0]})),
        Call("check_on_error", lambda: (images.check_on_error, {"value": "raise"})),
        Call(
            "prompts.fill", plain(prompts.fill, template="a {}", name="cat"), {"name": TEXTS - {"empty text"}}
        ),
        Call(
            "listed_templates",
            plain(prompts.listed_templates, templates="a {}"),
            {"templates": frozenset({"function"})},
        ),
        Call("read_classes", plain(prompts.read_classes, class_names=["a", "b"]), {"class_names": WORDS}),
        Call(
            "vote_weights",
            plain(weighting.vote_weights, distances=np.array([[1.0, 2.0]], np.float32), weighting="softmax"),
            {"temperature": frozenset({"1.5", "10**30"})},
            left_out=frozenset({"distances"}),
        ),
        Call("weighting_name", plain(weighting.weighting_name, weighting="softmax"), {"weighting": ANY}),
        Call(
            "as_label_array",
            plain(types.as_label_array, labels=["a"]),
            {"labels": WORDS | {"list of int", "empty list", "empty array"}},
        ),
        Call("Metric.parse", plain(types.Metric.parse, name="l2")),
        Call(
            "to_html",
            lambda: (report.to_html, {"path": "page.html"}),
            {"path": NONE | WRITABLE, "title": NONE | TEXTS, "pictures": SWITCH},
        ),
        Call("to_json", lambda: (report.to_json, {"path": "page.json"}), {"path": NONE | WRITABLE}),
        Call("to_markdown", lambda: (report.to_markdown, {"path": "page.md"}), {"path": NONE | WRITABLE}),
        Call("distance_histogram", lambda: (report.distance_histogram, {"bins": 4})),
        Call("confused_pairs", lambda: (report.confused_pairs, {"most": 4}), {"most": NONE | NATURAL}),
        Call(
            "render_page",
            lambda: (page.render_page, {"reports": [(None, report)]}),
            {
                "title": NONE | TEXTS,
                "pictures": SWITCH,
                "notes": WORDS | {"empty list", "empty array"},
                "remarks": WORDS | {"empty list", "empty array"},
                "comparison": frozenset({"empty list", "empty array"}),
                "tables": frozenset({"empty list", "empty array"}),
            },
        ),
        Call(
            "write_page",
            lambda: (page.write_page, {"path": "page.html", "reports": [(None, report)]}),
            {"path": WRITABLE, "reports": NOTHING},
        ),
        Call(
            "compare",
            lambda: (
                compare,
                {
                    "train": PICTURES,
                    "test": PICTURES[:2],
                    "encoder": pixel,
                    "stages": ["pixel"],
                    "stores": ["memory"],
                    "train_labels": LABELS,
                    "test_labels": LABELS[:2],
                    "timed_images": 1,
                    "single_images": 0,
                    "open_clip": False,
                },
            ),
            {
                "timed_images": NONE,
                "k": frozenset({"list of int"}),
                "priors": NUMBERS,
                "probe": SWITCH,
                "stages": NONE,
                "train_labels": NOTHING,
                "test_labels": WORDS | TABLE,
                "resume": SWITCH,
                "open_clip": SWITCH,
                "single_images": NONE | NATURAL,
                "zero_shot": NONE | SWITCH,
                "progress": PROGRESS,
                "cascades": frozenset({"empty list"}),
                "budget": NONE | {"1.5", "10**30"},
            },
            left_out=frozenset({"encoder"}),
        ),
        Call(
            "recommend",
            lambda: (
                recommend,
                {
                    "X": PICTURES * 3,
                    "y": LABELS * 3,
                    "encoder": pixel,
                    "stages": ["pixel"],
                    "timed_images": 1,
                    "folds": 3,
                },
            ),
            {
                "y": NOTHING,
                "heads": NONE,
                "cross": NONE | SWITCH,
                "poolings": NONE,
                "max_cost": NONE,
                "min_accuracy": NONE,
                "seed": frozenset({"0", "10**30"}),
                "progress": PROGRESS,
            },
            left_out=frozenset({"encoder"}),
        ),
        Call(
            "audit",
            plain(audit, X=ROWS * 2, y=LABELS * 2, X_test=ROWS, y_test=LABELS, k=2),
            {
                "parts": NONE,
                "limit": NONE | NATURAL,
                "output": NONE | WRITABLE | {"no parent"},
                "decisions": NONE | {"empty list", "empty array"},
                "y_test": NONE,
                "progress": PROGRESS,
            },
            frozenset({"X", "X_test"}),  # as scikit-learn has it
            left_out=frozenset({"encoder"}),
        ),
        Call(
            "Decisions",
            plain(Decisions, fingerprint={}, decisions=[]),
            {
                "decisions": frozenset({"empty list", "empty array"}),
                "fingerprint": frozenset({"empty dict", "dict", "dict of arrays"}),
            },
        ),
        Call("Decisions.from_json", plain(Decisions.from_json, path=folder / "missing.json")),
        Call(
            "apply_decisions",
            plain(apply_decisions, classifier=None, decisions=Decisions({}, []), folder=folder),
            {"classifier": NONE, "dry_run": SWITCH},
        ),
        Call("AuditReport.from_json", plain(AuditReport.from_json, path=folder / "missing.json")),
        Call(
            "reproduce",
            lambda: (
                reproduction.reproduce,
                {"train": scanned, "test": scanned, "encoder": None, "out": "out"},
            ),
            left_out=frozenset({"encoder"}),
        ),
        Call(
            "demo.draw",
            plain(demo.draw, kind=next(iter(demo.KINDS)), seed=0, size=16),
            {"seed": frozenset({"0", "10**30"})},
        ),
        Call(
            "demo.draw_many",
            plain(demo.draw_many, per_kind=1, seed=0, kinds=list(demo.KINDS)[:1], first=0, size=16),
            {"seed": frozenset({"0", "10**30"}), "first": NATURAL},
        ),
        Call(
            "demo.sample_scenes",
            plain(demo.sample_scenes, per_kind=1, seed=0, kinds=list(demo.KINDS)[:1]),
            {"seed": frozenset({"0", "10**30"}), "first": NATURAL},
        ),
        Call(
            "demo.write_folders",
            plain(
                demo.write_folders, out="drawn", train=1, test=1, seed=0, kinds=list(demo.KINDS)[:1], size=16
            ),
            {"out": WRITABLE | {"no parent"}, "seed": frozenset({"0", "10**30"})},
        ),
        Call("demo.run_demo", lambda: (demo.run_demo, {"out": "x", "train": 0, "test": 0})),
    ]
    return found


def calls_of_cascades(
    encoder: StagedEncoder,
    folder: Path,
    learning: dict[str, frozenset[str]],
    asking: dict[str, frozenset[str]],
) -> list[Call]:
    """List what users call of a cascade, with arguments that are right."""
    stages = ("stem", "mid")
    cascade = CascadeClassifier(encoder, stages, head="votes", store="memory").fit(PICTURES, LABELS)
    cascade.save(folder)
    others = [np.full((8, 8, 3), tone, dtype=np.uint8) for tone in range(10, 40)]
    some, ids = others[:2], [record.id for record in images.iter_images(PICTURES)]
    text = {"label": NONE, "labels": WORDS | TEXTS | TABLE}

    def of_cascade(method: str, **given: Any) -> Any:
        def make() -> tuple[Any, dict[str, Any]]:
            mine = copy.copy(cascade)
            mine.exits_ = tuple(map(copy.copy, cascade.exits_))
            for each in mine.exits_:
                each.store_ = copy.deepcopy(each.store_)
            return getattr(mine, method), dict(given)

        return make

    def fit(
        encoder: Any = encoder,
        stages: Any = stages,
        store: Any = "memory",
        k: Any = 1,
        weights: Any = "uniform",
        temperature: Any = 0.07,
        head: Any = "votes",
        priors: Any = "equal",
        metric: Any = "l2",
        normalize: Any = False,
        store_options: Any = None,
        certainty: Any = "combined",
    ) -> Any:
        options = {"k": k, "weights": weights, "temperature": temperature, "head": head, "priors": priors}
        options |= {"metric": metric, "normalize": normalize, "store_options": store_options}
        made = CascadeClassifier(encoder, stages, store=store, certainty=certainty, **options)
        return made.fit(PICTURES, LABELS)

    return [
        Call(
            "CascadeClassifier",
            lambda: (fit, {}),
            {
                "weights": frozenset({"function"}),
                "normalize": SWITCH,
                "temperature": frozenset({"1.5", "10**30"}),
                "priors": NUMBERS,
                "store_options": NONE | {"empty dict"},
            },
        ),
        Call("cascade.fit", of_cascade("fit", X=PICTURES, y=LABELS, overwrite=True), learning),
        Call(
            "cascade.partial_fit",
            of_cascade("partial_fit", X=PICTURES[:2], y=LABELS[:2]),
            learning | {"classes": NONE | WORDS | {"empty list", "empty array"}},
        ),
        Call("cascade.predict", of_cascade("predict", X=some), asking),
        Call("cascade.predict_proba", of_cascade("predict_proba", X=some), asking),
        Call("cascade.explain", of_cascade("explain", X=some), asking | {"k": NONE}),
        Call(
            "cascade.evaluate",
            of_cascade("evaluate", X=some, y=LABELS[:2]),
            asking | {"allow_tuned": SWITCH, "mistakes": NATURAL, "curve": SWITCH},
        ),
        Call(
            "cascade.calibrate",
            of_cascade("calibrate", X=others, y=LABELS * 10, max_loss=0.5, confidence=0.5),
            asking | {"budget": NONE | {"1.5", "10**30"}, "confidence": NOTHING},
        ),
        Call("cascade.forget", of_cascade("forget", ids=ids[:1], label=None), text),
        Call("cascade.forget a class", of_cascade("forget", label="a"), {"ids": NONE}),
        Call("cascade.relabel", of_cascade("relabel", ids=ids[:2], labels=["a", "a"]), text),
        Call(
            "cascade.save",
            of_cascade("save", path="saved"),
            {"path": WRITABLE | {"no parent"}, "overwrite": SWITCH},
        ),
        Call(
            "cascade.load",
            lambda: (CascadeClassifier.load, {"path": folder}),
            {"encoder": NONE, "stores": NONE, "allow_remote": SWITCH},
        ),
        Call(
            "cascade.from_stores",
            lambda: (
                CascadeClassifier.from_stores,
                {
                    "stores": {
                        stage: each.store_ for stage, each in zip(stages, cascade.exits_, strict=True)
                    },
                    "encoder": encoder,
                    "head": "votes",
                },
            ),
            {"stages": NONE},
        ),
        Call(
            "stream_exits",
            lambda: (
                encoder.stream_exits,
                {
                    "images": some,
                    "labels": LABELS[:2],
                    "stages": stages,
                    "stay_on": lambda place, batch: np.zeros(len(batch), dtype=bool),
                },
            ),
            {
                "labels": ANY,
                "skipped": NONE | {"empty list", "list of int", "list of str", "list of None", "ragged list"},
                "identify": SWITCH,
            },
            left_out=frozenset({"stay_on"}),  # tested beside it
        ),
    ]
