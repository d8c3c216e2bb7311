"""Measure heads: how often they are right at every stage, and what they cost, beside scikit-learn.

    python benchmarks/heads.py accuracy --model local-dir:MODEL --train TRAIN --test TEST --out a.json
    python benchmarks/heads.py accuracy --set digits new-kinds textures --out b.json
    python benchmarks/heads.py peers --vectors train.npz test.npz --stage mid --out c.json
    python benchmarks/heads.py speed --vectors train.npz test.npz --stage late --images TRAIN --out d.json
    python benchmarks/heads.py few --vectors train.npz test.npz --stage mid --out e.json

Without ``--model``, the small CLIP that the package carries encodes. TRAIN and TEST are folders with a
sub-folder of images for each class; ``--set`` draws images that no network here has seen (see
`_image_sets.py`); ``--vectors`` takes files of `numpy.savez` with an array for each stage and the labels as
``y``. All stages are encoded in one pass, and joined as `StagedEncoder` joins them. Figures are written to
``--out`` (JSON, and Markdown beside it) after every row.

accuracy
    Of each stage and head, with the 95 % Wilson interval. What is chosen (the temperature of softmax votes,
    and all that heads choose themselves) is chosen on stored images.
peers
    One stage: heads beside scikit-learn's classifiers; accuracy, time to learn and to answer, bytes.
speed
    Learning with the discriminant beside storing alone, and answering beside exact search, in turns.
few
    A class of 1, 4, 16 and 64 images beside the others with many; some classes take turns to be small.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from _classifiers import HEADS, PEERS, array_bytes, head_arguments, peer
from _findings import Findings, markdown_table
from _image_sets import IMAGE_SETS

from clipretrieval import ClipRetrievalWarning, RetrievalClassifier, StagedEncoder
from clipretrieval.demo import demo_model
from clipretrieval.evaluation import wilson_interval
from clipretrieval.images import scan_folder

STAGES = ("layer1", "layer2", "mid", "late", "final", "layer1+layer2", "layer1+layer2+mid")
SINGLE = 100
"""Queries that are asked one by one."""
SMALL = (1, 4, 16, 64)
"""Images of the small class."""


@dataclass(frozen=True, eq=False)
class Vectors:
    """Encoded images: a float32 array for each stage, and the labels."""

    name: str
    train: dict[str, Any]
    train_labels: Any
    test: dict[str, Any]
    test_labels: Any


def main() -> None:
    """Run what was asked for and print its table."""
    arguments = _arguments()
    warnings.simplefilter("ignore", ClipRetrievalWarning)
    print(arguments.measure(arguments))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="{accuracy,peers,speed,few}")
    measures = {"accuracy": accuracy, "peers": peers, "speed": speed, "few": few}
    for name, measure in measures.items():
        command = commands.add_parser(name)
        command.set_defaults(measure=measure)
        command.add_argument("--model", default=demo_model(), help="as for StagedEncoder (the demo's)")
        command.add_argument("--train", type=Path, help="folder to learn from")
        command.add_argument("--test", type=Path, help="folder to classify")
        command.add_argument(
            "--set", nargs="+", default=[], choices=sorted(IMAGE_SETS), help="images to draw"
        )
        command.add_argument(
            "--vectors", nargs=2, type=Path, metavar=("TRAIN", "TEST"), help="encoded images"
        )
        command.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
        command.add_argument("--seed", type=int, default=0, help="of the images that are drawn, and of draws")
        command.add_argument(
            "--out", type=Path, help="JSON file, written after every row; Markdown beside it"
        )
        if name == "accuracy":
            command.add_argument("--stages", nargs="+", default=list(STAGES))
        else:
            command.add_argument("--stage", default="mid")
            command.add_argument("--rounds", type=int, default=3)
        if name == "speed":
            command.add_argument("--images", type=Path, help="class folders: also learn from images")
            command.add_argument("--count", type=int, default=10_000, help="of these images (10000)")
        if name == "few":
            command.add_argument("--many", type=int, default=400, help="images of each other class (400)")
            command.add_argument("--turns", type=int, default=5, help="classes that are the small one (5)")
            command.add_argument("--tested", type=int, default=200, help="test images a class (200)")
    arguments = parser.parse_args()
    if not (arguments.set or arguments.vectors or (arguments.train and arguments.test)):
        parser.error("pass --set, --vectors, or --train and --test")
    return arguments


def encoded(arguments: argparse.Namespace, stages: tuple[str, ...]) -> Iterator[Vectors]:
    """Yield each set that was asked for, encoded at the stages."""
    if arguments.vectors:
        with np.load(arguments.vectors[0]) as train, np.load(arguments.vectors[1]) as test:
            parts = [
                _joined({stage: part[stage] for stage in _parts(stages)}, stages) for part in (train, test)
            ]
            yield Vectors(arguments.vectors[0].parent.name, parts[0], train["y"], parts[1], test["y"])
    if arguments.train and arguments.test:
        folders = [scan_folder(folder) for folder in (arguments.train, arguments.test)]
        parts = [_encode(arguments.model, folder.paths, stages) for folder in folders]
        yield Vectors(arguments.train.parent.name, parts[0], folders[0].labels, parts[1], folders[1].labels)
    for name in arguments.set:
        drawn = IMAGE_SETS[name](arguments.seed)
        parts = [_encode(arguments.model, part, stages) for part in (drawn.train, drawn.test)]
        yield Vectors(name, parts[0], drawn.train_labels, parts[1], drawn.test_labels)


def _encode(model: str, images: Any, stages: tuple[str, ...]) -> dict[str, Any]:
    parts = _parts(stages)
    batches = list(StagedEncoder(model, stage=parts[-1]).stream(images, stages=parts))
    return _joined({part: np.concatenate([b.vectors[part] for b in batches]) for part in parts}, stages)


def _parts(stages: tuple[str, ...]) -> tuple[str, ...]:
    """Return what joined stages consist of."""
    return tuple(dict.fromkeys(part for stage in stages for part in stage.split("+")))


def _joined(vectors: dict[str, Any], stages: tuple[str, ...]) -> dict[str, Any]:
    """Put stages together, each part at the same length."""
    found = {}
    for stage in stages:
        parts = [vectors[part] for part in stage.split("+")]
        scaled = [part / np.linalg.norm(part, axis=1, keepdims=True) / len(parts) ** 0.5 for part in parts]
        found[stage] = parts[0] if len(parts) == 1 else np.concatenate(scaled, axis=1)
    return found


def accuracy(arguments: argparse.Namespace) -> Findings:
    """Measure every stage × head."""
    found = Findings(arguments.out, render_accuracy, model=_shown(arguments), seed=arguments.seed)
    costs = {}
    if not arguments.vectors or arguments.model != demo_model():
        encoder = StagedEncoder(arguments.model)
        costs = {stage: encoder.multiply_adds(stage) for stage in arguments.stages}
    for vectors in encoded(arguments, tuple(arguments.stages)):
        for stage in arguments.stages:
            train, test = vectors.train[stage], vectors.test[stage]
            for head in arguments.heads:
                chosen = head_arguments(head, train, vectors.train_labels)
                classifier, learning = _timed(_learned, chosen, train, vectors.train_labels)
                answers, answering = _timed(classifier.predict, test)
                right = int((answers == np.asarray(vectors.test_labels)).sum())
                low, high = wilson_interval(right, len(answers))
                found.add(
                    set=vectors.name,
                    stage=stage,
                    head=head,
                    accuracy=right / len(answers),
                    low=low,
                    high=high,
                    n=len(answers),
                    stored=len(train),
                    dim=train.shape[1],
                    multiply_adds=costs.get(stage),
                    temperature=chosen.get("temperature"),
                    learn_s=learning,
                    answer_ms=1000 * answering / len(answers),
                )
    return found


def _learned(arguments: dict[str, Any], vectors: Any, labels: Any) -> RetrievalClassifier:
    classifier = RetrievalClassifier(**arguments).fit(vectors, labels)
    _ = classifier.head_  # learns; else the first question would
    return classifier


def _timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    made = work(*arguments)
    return made, time.perf_counter() - started


def _shown(arguments: argparse.Namespace) -> str:
    if arguments.vectors and arguments.model == demo_model():
        return "not named"
    return "the demo's" if arguments.model == demo_model() else Path(arguments.model).name


def render_accuracy(rows: list[dict[str, Any]]) -> str:
    """Write a table for each set, and how far early stages are from today's answer at `late`."""
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        own = {(row["head"], row["stage"]): row for row in rows if row["set"] == name}
        stages = list(dict.fromkeys(stage for _, stage in own))
        first = next(iter(own.values()))
        table = [
            [head, *(_with_interval(own.get((head, stage))) for stage in stages)]
            for head in dict.fromkeys(head for head, _ in own)
        ]
        if first["multiply_adds"]:
            costs = [next(row["multiply_adds"] for row in own.values() if row["stage"] == s) for s in stages]
            table.insert(0, ["multiply-adds, 10⁹", *(f"{cost:.4f}" for cost in costs)])
        lines += ["", f"{name}: {first['stored']} stored, {first['n']} asked", ""]
        lines += [markdown_table(["", *stages], table), ""]
        today = own.get(("votes, k=1", "late"))
        for (head, stage), row in own.items():
            if today and stage in ("layer1", "layer2") and head in ("discriminant", "fused"):
                ahead = 100 * (row["accuracy"] - today["accuracy"])
                lines.append(f"- {head} at {stage}: {ahead:+.1f} points beside votes (k=1) at late")
    return "\n".join(lines)


def _with_interval(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    return f"{100 * row['accuracy']:.1f} ({100 * row['low']:.1f}–{100 * row['high']:.1f})"


def peers(arguments: argparse.Namespace) -> Findings:
    """Measure heads beside scikit-learn's classifiers, in turns."""
    stage = arguments.stage
    found = Findings(
        arguments.out,
        render_peers,
        model=_shown(arguments),
        seed=arguments.seed,
        stage=stage,
        rounds=arguments.rounds,
    )
    for vectors in encoded(arguments, (stage,)):
        train, test, labels = vectors.train[stage], vectors.test[stage], vectors.train_labels
        sides: dict[str, Callable[[], Any]] = {}
        chosen: dict[str, str] = {}
        for head in arguments.heads:
            made = head_arguments(head, train, labels)
            chosen[head] = f"temperature {made['temperature']}" if "temperature" in made else ""
            sides[head] = partial(_learned, made, train, labels)
        for name in PEERS:
            estimator, chosen[name] = peer(name, train, labels)
            sides[name] = partial(estimator.fit, train, labels)
        taken: dict[str, dict[str, list[float]]] = {
            name: {"learn": [], "batch": [], "one": []} for name in sides
        }
        for _ in range(arguments.rounds):
            for name, learn in sides.items():
                side, seconds = _timed(learn)
                taken[name]["learn"].append(seconds)
                answers, seconds = _timed(side.predict, test[:1000])
                taken[name]["batch"].append(1000 * seconds / min(1000, len(test)))
                singles = [_timed(side.predict, query[None])[1] for query in test[:SINGLE]]
                taken[name]["one"].append(1000 * statistics.median(singles))
                if len(taken[name]["learn"]) == arguments.rounds:
                    answers = side.predict(test)
                    right = int((answers == np.asarray(vectors.test_labels)).sum())
                    low, high = wilson_interval(right, len(answers))
                    found.add(
                        set=vectors.name,
                        classifier=name,
                        accuracy=right / len(answers),
                        low=low,
                        high=high,
                        learn_s=taken[name]["learn"],
                        batch_ms=taken[name]["batch"],
                        one_ms=taken[name]["one"],
                        **_bytes_of(side, train),
                        setting=chosen[name],
                    )
    return found


def _bytes_of(side: Any, stored: Any) -> dict[str, int]:
    """Count what has to be in memory to answer, and what is kept in all, to go on learning."""
    if not isinstance(side, RetrievalClassifier):
        held = array_bytes(side)
        return {"answer_bytes": held, "kept_bytes": held}
    rule = side.head_
    learned = array_bytes(getattr(rule, "learned", None))
    held = 0 if side._statistics is None else array_bytes(side._statistics._held)
    answer = learned + (stored.nbytes if rule.k else 0)
    return {"answer_bytes": answer, "kept_bytes": learned + held + stored.nbytes}


def render_peers(rows: list[dict[str, Any]]) -> str:
    """Write a table of medians, with the least and the most of all rounds."""
    head = [
        "",
        "accuracy",
        "learn, s",
        "ms, 1,000 together",
        "ms, one by one",
        "MB to answer",
        "MB kept",
        "setting",
    ]
    table = [
        [
            row["classifier"],
            _with_interval(row),
            *(_spread(row[part]) for part in ("learn_s", "batch_ms", "one_ms")),
            f"{row['answer_bytes'] / 1e6:.1f}",
            f"{row['kept_bytes'] / 1e6:.1f}",
            row["setting"],
        ]
        for row in rows
    ]
    return "\n" + markdown_table(head, table)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}–{max(values):.3g})"


def speed(arguments: argparse.Namespace) -> Findings:
    """Measure what the discriminant adds to a fit, and its answers beside exact search."""
    stage = arguments.stage
    found = Findings(
        arguments.out, render_speed, model=_shown(arguments), stage=stage, rounds=arguments.rounds
    )
    (vectors,) = encoded(arguments, (stage,))
    train, test, labels = vectors.train[stage], vectors.test[stage][:1000], vectors.train_labels
    bare = faiss.IndexFlatL2(train.shape[1])
    bare.add(train)
    shape = f"{len(train):,} × {train.shape[1]:,}"
    for number in range(arguments.rounds + 1):
        order = ("votes", "discriminant") if number % 2 else ("discriminant", "votes")
        learned = {head: _cost(_learned, {"head": head}, train, labels) for head in order}
        answering = {head: _cost(learned[head][0].predict, test)[1] for head in order}
        _, searching = _cost(bare.search, test, 1)
        if number:  # the first one warms up
            took = {head: cost for head, (_, cost) in learned.items()}
            found.add(what=f"learn {shape} vectors, beside head='votes'", **_beside(took))
            flat = {"discriminant": answering["discriminant"], "votes": searching}
            found.add(what=f"answer {len(test):,}, beside FAISS flat in {shape}", **_beside(flat))
            found.add(what=f"answer {len(test):,}, beside head='votes', k=1", **_beside(answering))
    if arguments.images:
        folder = scan_folder(arguments.images)
        if folder.labels is None:
            raise SystemExit(f"{folder.root} has no class folders")
        chosen = np.random.default_rng(0).permutation(len(folder.paths))[: arguments.count]
        paths, named = [folder.paths[i] for i in chosen], [folder.labels[i] for i in chosen]
        encoder = StagedEncoder(arguments.model, stage=stage)
        encoder.encode(paths[:64])  # builds the engine

        def learn(head: str) -> None:
            _ = RetrievalClassifier(encoder, head=head).fit(paths, named).head_

        for number in range(arguments.rounds):
            order = ("votes", "discriminant") if number % 2 else ("discriminant", "votes")
            took = {head: _cost(learn, head)[1] for head in order}
            found.add(what=f"learn {len(paths):,} images at {stage}, beside head='votes'", **_beside(took))
    return found


def _cost(work: Callable[..., Any], *arguments: Any) -> tuple[Any, tuple[float, float]]:
    """Return what was made, and the seconds that passed and those that processors spent on it."""
    before = time.process_time()
    made, seconds = _timed(work, *arguments)
    return made, (seconds, time.process_time() - before)


def _beside(costs: dict[str, tuple[float, float]]) -> dict[str, float]:
    (seconds, spent), (other, other_spent) = costs["discriminant"], costs["votes"]
    return {"seconds": seconds, "other": other, "cpu": spent, "other_cpu": other_spent}


def render_speed(rows: list[dict[str, Any]]) -> str:
    """Write the ratios, formed round by round, of the time and of the processors' time."""
    table = []
    for what in dict.fromkeys(row["what"] for row in rows):
        own = [row for row in rows if row["what"] == what]
        cells = [_spread([row[part] for row in own]) for part in ("seconds", "other")]
        for mine, other in (("seconds", "other"), ("cpu", "other_cpu")):
            cells.append(_spread([row[mine] / row[other] for row in own]))
        table.append([what, *cells])
    return "\n" + markdown_table(["discriminant", "s", "the other, s", "ratio", "ratio of CPU time"], table)


def few(arguments: argparse.Namespace) -> Findings:
    """Add a class image by image to a classifier that knows many images of the others."""
    stage, many = arguments.stage, arguments.many
    found = Findings(
        arguments.out, render_few, model=_shown(arguments), seed=arguments.seed, stage=stage, many=many
    )
    for vectors in encoded(arguments, (stage,)):
        stored, labels = _first(vectors.train[stage], vectors.train_labels, many, arguments.seed)
        asked, truth = _first(vectors.test[stage], vectors.test_labels, arguments.tested, arguments.seed)
        for head in arguments.heads:
            for small in np.unique(labels)[: arguments.turns]:
                kept = labels != small
                chosen = head_arguments(head, stored[kept], labels[kept])
                classifier = RetrievalClassifier(**chosen).fit(stored[kept], labels[kept])
                for count in [n for n in SMALL if n <= (~kept).sum()]:
                    classifier.partial_fit(stored[~kept][:count], labels[~kept][:count])
                    for priors in ("equal", "empirical") if chosen.get("head") else ("–",):
                        if priors != "–":
                            classifier.set_params(priors=priors)
                        right = classifier.predict(asked) == truth
                        found.add(
                            set=vectors.name,
                            head=head,
                            priors=priors,
                            count=count,
                            small=str(small),
                            own=float(right[truth == small].mean()),
                            others=float(right[truth != small].mean()),
                        )
    return found


def _first(vectors: Any, labels: Any, most: int, seed: int) -> tuple[Any, Any]:
    """Return at most so many vectors of each class, drawn."""
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    taken = [order[labels[order] == label][:most] for label in np.unique(labels)]
    rows = np.concatenate(taken)
    return vectors[rows], labels[rows]


def render_few(rows: list[dict[str, Any]]) -> str:
    """Write accuracy on the small class / on the others, means over the classes that took turns."""
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        counts = sorted({row["count"] for row in own})
        table = []
        for head, priors in dict.fromkeys((row["head"], row["priors"]) for row in own):
            cells = []
            for count in counts:
                these = [r for r in own if (r["head"], r["priors"], r["count"]) == (head, priors, count)]
                shares = (
                    [100 * statistics.mean(row[part] for row in these) for part in ("own", "others")]
                    if these
                    else []
                )
                cells.append(" / ".join(f"{share:.1f}" for share in shares) or "–")
            table.append([head, priors, *cells])
        head_line = ["head", "priors", *(f"{count} of the class / others" for count in counts)]
        lines += ["", name, "", markdown_table(head_line, table)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
