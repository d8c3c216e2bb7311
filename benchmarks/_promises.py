"""What is promised by held-out images, measured: coverage of sets, and who is turned away."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval import RetrievalClassifier, StagedEncoder
from clipretrieval.demo import demo_model, write_folders
from clipretrieval.evaluation.unknown import UnknownFigures
from clipretrieval.heads.base import Queries
from clipretrieval.heads.covariance import oas_shrinkage
from clipretrieval.heads.decision import Posterior
from clipretrieval.heads.discriminant import LearnedDiscriminant, pooled_covariance
from clipretrieval.heads.statistics import ClassStatistics
from clipretrieval.images import scan_folder
from clipretrieval.trust.conformal import ConformalRule, Ranked, choose_regularisation, draws, greater_share
from clipretrieval.trust.likeness import MahalanobisLikeness, NeighborLikeness
from clipretrieval.types import Neighbors, no_neighbors

STAGES = ("layer2", "mid", "late")
COVERAGES = (0.9, 0.95, 0.99)
TUNED = 0.2
AWAY = 0.05
NEAREST = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what both measurements take."""
    parser.add_argument("--demo", action="store_true", help="draw the images")
    parser.add_argument("--model", default="RN50", help="as for StagedEncoder (default RN50)")
    parser.add_argument("--pretrained", default=None, help="weights (default: the model's own)")
    parser.add_argument("--train", type=Path, help="folder to fit on")
    parser.add_argument("--test", type=Path, help="folder to hold out and to classify")
    parser.add_argument("--vectors", type=Path, default=Path("trust-vectors"), help="where vectors are kept")
    parser.add_argument("--each", type=int, default=2000, help="images of each class to store (2000)")
    parser.add_argument("--heads", nargs="+", default=["discriminant", "votes"], help="of the sets")
    parser.add_argument("--times", type=int, default=100, help="resamplings (100)")
    parser.add_argument("--held-out", type=int, default=2000, help="of the test images, each time (2000)")
    parser.add_argument("--pairs", type=int, default=1, help="measure each so-manieth pair of classes (1)")
    parser.add_argument("--json", type=Path, help="write the figures there, after each")


def run(what: str, arguments: argparse.Namespace) -> None:
    """Measure the coverage of sets, or who is turned away, and print a line for each figure."""
    rows: list[dict[str, Any]] = []
    for row in (_coverage if what == "coverage" else _unknown)(_vectors(arguments), arguments):
        rows.append(row)
        print("\t".join(f"{name} {value}" for name, value in row.items()), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _vectors(arguments: argparse.Namespace) -> dict[str, Any]:
    """Encode both folders once."""
    arguments.vectors.mkdir(exist_ok=True)
    kept = arguments.vectors / f"{'demo' if arguments.demo else 'images'}-{arguments.each}.npz"
    if not kept.exists():
        found: dict[str, Any] = {}
        train, test, model = arguments.train, arguments.test, arguments.model
        if arguments.demo:
            folder = write_folders(arguments.vectors / "drawn", train=200, test=100)
            train, test, model = folder / "train", folder / "test", demo_model()
        encoder = StagedEncoder(model, arguments.pretrained, stage="late")
        for part, folder in (("train", train), ("test", test)):
            images, taken = scan_folder(folder), dict[str, int]()
            chosen = []
            for path, label in zip(images.paths, images.labels or (), strict=True):
                taken[label] = taken.get(label, 0) + 1
                if taken[label] <= arguments.each or part == "test":
                    chosen.append((path, label))
            for stage, vectors in encoder.encode_stages([path for path, _ in chosen], STAGES).items():
                found[f"{part}-{stage}"] = vectors
            found[f"{part}-labels"] = np.array([label for _, label in chosen])
        np.savez(kept, **found)
    return dict(np.load(kept))


def _coverage(vectors: dict[str, Any], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    truth = np.unique(vectors["test-labels"], return_inverse=True)[1]
    ids = [str(place) for place in range(len(truth))]
    for stage, head in itertools.product(STAGES, arguments.heads):
        classifier = RetrievalClassifier(store="memory", head=head, k=20)
        classifier.fit(vectors[f"train-{stage}"], vectors["train-labels"].tolist())
        shares = classifier.predict_proba(vectors[f"test-{stage}"])
        ranked = Ranked.of(shares)
        for score, conditional, coverage in itertools.product(
            ("lac", "aps", "raps"), (False, True), COVERAGES
        ):
            rule = ConformalRule(score, conditional)
            found = [
                _once(rule, ranked, shares, truth, ids, coverage, seed, arguments.held_out)
                for seed in range(arguments.times)
            ]
            hits, sizes, each = (np.array(column) for column in zip(*found, strict=True))
            yield {
                "stage": stage,
                "head": head,
                "score": score,
                "of each class": conditional,
                "asked": coverage,
                "coverage": round(float(hits.mean()), 4),
                "deviation": round(float(hits.std()), 4),
                "size": round(float(sizes.mean()), 3),
                "worst class": round(float(each.mean(axis=0).min()), 4),
                "best class": round(float(each.mean(axis=0).max()), 4),
            }


def _once(
    rule: ConformalRule,
    ranked: Ranked,
    shares: Any,
    truth: Any,
    ids: list[str],
    coverage: float,
    seed: int,
    held_out: int,
) -> tuple[float, float, Any]:
    """Hold some images out, and return the coverage, the size of the sets, and the coverage by class."""
    order = np.random.default_rng(seed).permutation(len(truth))
    held, asked = order[:held_out], order[held_out:]
    parts, ties = draws(ids, seed, "part"), draws(ids, seed, "tie")
    penalty, free = 0.0, 0
    if rule.chooses:
        tuned, held = np.split(held, [int(TUNED * held_out)])
        penalty, free = choose_regularisation(rule, shares[tuned], truth[tuned], parts[tuned], 1 - coverage)
    own = rule.scores(ranked.take(held).at(truth[held]), parts[held], penalty, free)
    scores = rule.scores(ranked.take(asked), parts[asked][:, None], penalty, free)
    values = np.empty(scores.shape)
    for code in range(scores.shape[1]):
        alike = own[truth[held] == code] if rule.class_conditional else own
        values[:, code] = greater_share(np.sort(alike), scores[:, code], ties[asked])
    sets = values > 1 - coverage
    hit = sets[np.arange(len(asked)), truth[asked]]
    each = [hit[truth[asked] == code].mean() for code in range(scores.shape[1])]
    return float(hit.mean()), float(sets.sum(axis=1).mean()), each


def _unknown(vectors: dict[str, Any], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    classes, stored = np.unique(vectors["train-labels"], return_inverse=True)
    truth = np.searchsorted(classes, vectors["test-labels"])
    held = np.arange(len(truth)) % 2 == 0
    pairs = list(itertools.combinations(range(len(classes)), 2))[:: arguments.pairs]
    for stage in STAGES:
        train, test = vectors[f"train-{stage}"], vectors[f"test-{stage}"]
        near = np.stack([_nearest(train[stored == code], test) for code in range(len(classes))], axis=1)
        found: dict[str, list[UnknownFigures]] = {}
        for pair in pairs:
            known = [code for code in range(len(classes)) if code not in pair]
            rows = np.isin(stored, known)
            statistics = ClassStatistics(train.shape[1])
            statistics.add(train[rows], stored[rows].tolist())
            distances = np.sort(near[:, known].reshape(len(test), -1), axis=1)[:, :NEAREST].astype(np.float32)
            names = np.full(distances.shape, "", dtype=object)
            neighbors = Neighbors(names, distances, names)
            scores = {
                f"neighbor {k}{', relative' * relative}": NeighborLikeness(k, relative).score(test, neighbors)
                for k, relative in itertools.product((1, 5, 10, 20), (False, True))
            }
            scores["mahalanobis"] = MahalanobisLikeness(statistics).score(test, neighbors)
            scores.update(_of_discriminant(statistics, test))
            inside = np.isin(truth, known)
            for name, values in scores.items():
                own = np.sort(values[held & inside])
                least = own[int(AWAY * (len(own) + 1)) - 1]
                figures = UnknownFigures.of(values[~held & inside], values[~inside], float(least))
                found.setdefault(name, []).append(figures)
        for name, each in found.items():
            yield {
                "stage": stage,
                "score": name,
                "pairs": len(each),
                "AUROC": round(float(np.mean([one.auroc for one in each])), 4),
                "worst pair": round(min(one.auroc for one in each), 4),
                "known away": round(float(np.mean([one.known_turned_away for one in each])), 4),
                "deviation": round(float(np.std([one.known_turned_away for one in each])), 4),
                "unknown away": round(float(np.mean([one.unknown_turned_away for one in each])), 4),
            }


def _nearest(stored: Any, asked: Any) -> Any:
    """Return the squared distances to the nearest stored vectors, shape (n, NEAREST)."""
    parts, squares = [], np.einsum("ij,ij->i", stored, stored)
    for start in range(0, len(asked), 1000):
        part = asked[start : start + 1000]
        far = np.einsum("ij,ij->i", part, part)[:, None] + squares - 2 * part @ stored.T
        parts.append(np.sort(np.partition(np.maximum(far, 0), NEAREST, axis=1)[:, :NEAREST], axis=1))
    return np.concatenate(parts)


def _of_discriminant(statistics: ClassStatistics, vectors: Any) -> dict[str, Any]:
    """Return how sure the discriminant is, and its energy: the logarithm of the sum of its scores."""
    from scipy.special import logsumexp

    covariance, freedom = pooled_covariance(statistics)
    priors = np.full(len(statistics.classes), 1 / len(statistics.classes))
    learned = LearnedDiscriminant(statistics, covariance, oas_shrinkage(covariance, freedom), priors)
    scores = learned.log_scores(Queries(vectors, no_neighbors(len(vectors))))
    shares = Posterior(scores, np.arange(len(priors))).probabilities
    return {"probability": shares.max(axis=1), "energy": logsumexp(scores, axis=1)}
