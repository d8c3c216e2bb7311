"""The classifiers that `heads.py` compares: each head by a name, and scikit-learn's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clipretrieval import RetrievalClassifier

__all__ = ["HEADS", "PEERS", "array_bytes", "head_arguments", "peer"]

NEIGHBORS = 20
TEMPERATURES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
HELD_OUT = 2000
"""Stored vectors that a setting is chosen on, at most; a tenth where that is fewer."""

_WHITENS = "transform" in signature(RetrievalClassifier).parameters
HEADS: dict[str, dict[str, Any]] = {
    "votes, k=1": {},
    "votes, k=20, softmax": {"k": NEIGHBORS, "weights": "softmax", "normalize": True},
    **(
        {"votes, k=20, whitened": {"k": NEIGHBORS, "weights": "softmax", "transform": "whiten"}}
        if _WHITENS
        else {}
    ),
    "discriminant": {"head": "discriminant"},
    "quadratic": {"head": "quadratic"},
    "ridge": {"head": "ridge"},
    "fused": {"head": "fused", "k": NEIGHBORS},
}


def head_arguments(name: str, vectors: Any, labels: Any) -> dict[str, Any]:
    """Return the arguments of a head; the temperature of softmax is chosen on stored vectors held out."""
    arguments = dict(HEADS[name])
    if arguments.get("weights") == "softmax":
        kept, held, kept_labels, held_labels = _parted(vectors, labels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            classifier = RetrievalClassifier(**arguments).fit(kept, kept_labels)
            tried = classifier.sweep(
                held, held_labels, k=NEIGHBORS, weights="softmax", temperature=TEMPERATURES, validation="all"
            )
        arguments["temperature"] = tried.best_params["temperature"]
    return arguments


def _parted(vectors: Any, labels: Any) -> list[Any]:
    held = min(HELD_OUT, len(labels) // 10)
    found: list[Any] = train_test_split(vectors, labels, test_size=held, random_state=0, stratify=labels)
    return found


def _lda(shrinkage: float) -> Any:
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)


def _qda(amount: float) -> Any:
    # reg_param is for the solver "svd", which takes no class of fewer vectors than dimensions.
    return QuadraticDiscriminantAnalysis(solver="eigen", shrinkage=amount, tol=0.0)


def _logistic(strength: float) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))


PEERS: dict[str, tuple[Callable[..., Any], str, tuple[float, ...]]] = {
    "LinearDiscriminantAnalysis": (_lda, "shrinkage", (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1)),
    "QuadraticDiscriminantAnalysis": (_qda, "shrinkage", (0.003, 0.01, 0.03, 0.1, 0.3)),
    "LogisticRegression": (_logistic, "C", (0.001, 0.01, 0.1, 1.0)),
    "KNeighborsClassifier, k=1": (lambda: KNeighborsClassifier(1), "", ()),
    "KNeighborsClassifier, k=20": (lambda: KNeighborsClassifier(NEIGHBORS, weights="distance"), "", ()),
}
"""scikit-learn's classifiers: what makes one, its regularisation, and what that is chosen among."""

CHOSEN_ON = 10_000
"""Stored vectors that a regularisation is chosen with, at most."""


def peer(name: str, vectors: Any, labels: Any) -> tuple[Any, str]:
    """Return one of scikit-learn's classifiers, not fitted, and what was chosen for it."""
    make, setting, amounts = PEERS[name]
    if not amounts:
        return make(), ""
    few = np.random.default_rng(0).permutation(len(labels))[:CHOSEN_ON]
    kept, held, kept_labels, held_labels = _parted(vectors[few], np.asarray(labels)[few])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = [make(amount).fit(kept, kept_labels).score(held, held_labels) for amount in amounts]
    best = amounts[int(np.argmax(scores))]
    return make(best), f"{setting} {best}"


def array_bytes(root: Any) -> int:
    """Return the bytes of all arrays that an object holds, each array counted once."""
    seen: dict[int, int] = {}
    kept, waiting = [], [root]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, str | bytes | int | float | type):
            continue
        seen[id(each)] = 0
        kept.append(each)  # so that no other gets its id
        if isinstance(each, np.ndarray):
            owner = each if each.base is None else each.base
            waiting += [owner] if owner is not each and isinstance(owner, np.ndarray) else []
            seen[id(each)] = each.nbytes if owner is each or not isinstance(owner, np.ndarray) else 0
        elif isinstance(each, dict):
            waiting += each.values()
        elif isinstance(each, list | tuple | set):
            waiting += each
        else:
            waiting += list(getattr(each, "__dict__", {}).values())
            waiting += [cell.cell_contents for cell in getattr(each, "__closure__", None) or ()]
    return sum(seen.values())
