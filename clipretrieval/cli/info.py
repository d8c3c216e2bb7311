"""``clipretrieval info``: what a kept classifier holds, without loading its encoder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipretrieval._util.tables import aligned_table
from clipretrieval._util.text import json_line, readable
from clipretrieval._version import __version__
from clipretrieval.cli.arguments import AllowRemote, KeptArgument, PrintJson
from clipretrieval.cli.calibrate import calibration_text
from clipretrieval.cli.console import quiet_libraries, say, tell
from clipretrieval.cli.python_words import in_options
from clipretrieval.errors import InvalidInputError

if TYPE_CHECKING:
    from clipretrieval.persistence.classifier_file import ClassifierFile
    from clipretrieval.stores.base import VectorStore
    from clipretrieval.trust.calibration_images import CalibrationImages

__all__ = ["info_command"]


@dataclass(frozen=True)
class _Contents:
    """What a folder holds; sizes in bytes, and None where something cannot be known."""

    path: str
    encoder: dict[str, Any] | None
    dim: int
    params: dict[str, Any]
    store: dict[str, Any]
    images: int | None
    classes: list[dict[str, Any]] | None
    size: int
    versions: dict[str, Any]
    cascade: dict[str, Any] | None
    trust: dict[str, Any] | None


def info_command(
    classifier: KeptArgument, as_json: PrintJson = False, allow_remote: AllowRemote = False
) -> None:
    """Show what is saved: encoder, classes with their counts, store, calibration, size, a cascade's exits."""
    with quiet_libraries():
        found = _contents(classifier, allow_remote)
    say(json_line(asdict(found)) if as_json else _contents_text(found))


def _contents(folder: Path, allow_remote: bool) -> _Contents:
    from clipretrieval._util.secrets import masked
    from clipretrieval.heads.choice import head_values
    from clipretrieval.persistence.saving import describe
    from clipretrieval.persistence.stores import open_store

    content = describe(folder)
    images, classes, whole = None, None, None
    if content.cascade is not None:
        whole = _cascade(content, content.cascade, folder, allow_remote)
    try:
        with closing(open_store(content.store, folder, allow_remote=allow_remote)) as store:
            images, classes = store.count(), _classes(store, content.label_kind)
            trust = _trust(content, folder, store)
    except InvalidInputError as error:  # it may be opened with consent only, or has to be passed
        reason = in_options(" ".join(str(error).splitlines()), ("allow_remote",))
        tell(f"warning: the store was not opened: {reason}")
        trust = _trust(content, folder, None)
    return _Contents(
        path=str(folder),
        encoder=masked(content.encoder),
        dim=content.n_features_in,
        params={**content.params, "head": head_values(content.params["head"])},
        store=masked(_place(content.store or {}, folder, images is not None)),
        images=images,
        classes=classes,
        size=_size(folder),
        versions={
            "written_by": content.library_version,
            "format": content.format_version,
            "clipretrieval": __version__,
        },
        cascade=whole,
        trust=trust,
    )


def _trust(content: ClassifierFile, folder: Path, store: VectorStore | None) -> dict[str, Any] | None:
    """Return what `calibrate`, `conformalize` and `unknown` have set; None where nothing was set.

    Without a store, all images that were given count.
    """
    import numpy as np

    from clipretrieval.persistence.saving import read_trust
    from clipretrieval.retrieval.manifest import manifest_classes

    if content.trust is None:
        return None
    trust, answers = read_trust(folder, content)
    found: dict[str, Any] = {"calibrated": None, "conformalized": None, **answers}

    def counted(images: CalibrationImages) -> Any:
        if store is None:
            return np.arange(len(images))
        return images.counted(store, manifest_classes(store.read_manifest()))

    if (calibrated := trust.calibrated) is not None:
        found["calibrated"] = {"method": calibrated.method, "n": len(counted(calibrated.images))}
    if (conformal := trust.conformal) is not None:
        found["conformalized"] = conformal.promise(counted(conformal.images)).to_dict()
    return found


def _cascade(
    content: ClassifierFile, cascade: Mapping[str, Any], folder: Path, allow_remote: bool
) -> dict[str, Any]:
    """Return a cascade's exits with what each holds, and what was calibrated."""
    from clipretrieval._util.secrets import masked
    from clipretrieval.cascade.calibration import read_state

    state = read_state(content.path, cascade["state"], len(cascade["stages"]))
    exits = []
    for stage, kept, dim, cost in zip(
        cascade["stages"], cascade["stores"], cascade["dims"], state.multiply_adds, strict=True
    ):
        images, keeps_vectors = _count(kept, folder, allow_remote)
        store = masked(_place(kept or {}, folder, images is not None))
        exits.append(
            {
                "stage": stage,
                "dim": dim,
                "images": images,
                "keeps_vectors": keeps_vectors,
                "arithmetic": cost / state.multiply_adds[-1],
                "store": store,
            }
        )
    return {
        "exits": exits,
        "certainty": state.policy.certainty,
        "calibration": None if state.calibration is None else state.calibration.to_dict(),
    }


def _count(
    kept: Mapping[str, Any] | None, folder: Path, allow_remote: bool
) -> tuple[int | None, bool | None]:
    """Count what an exit's store holds, and tell whether it keeps vectors; None where it cannot be opened."""
    from clipretrieval.persistence.stores import open_store
    from clipretrieval.retrieval.vectorless_store import is_vectorless

    try:
        with closing(open_store(kept, folder, allow_remote=allow_remote)) as store:
            return store.count(), not is_vectorless(store)
    except InvalidInputError:  # told of once, for the last exit
        return None, None


def _classes(store: VectorStore, kind: str) -> list[dict[str, Any]] | None:
    """Count the images of each class; None where the store cannot list what it holds."""
    from clipretrieval._util.labels import fitted_labels
    from clipretrieval.retrieval.manifest import manifest_classes
    from clipretrieval.stores.base import ScannableStore

    counts: Counter[Any] = Counter(dict.fromkeys(manifest_classes(store.read_manifest()), 0))
    if not isinstance(store, ScannableStore):
        return None
    for records in store.scan():
        counts.update(records.labels.tolist())
    stored = sorted(counts)
    names = fitted_labels(stored, kind)
    return [{"label": name, "images": counts[each]} for name, each in zip(names, stored, strict=True)]


def _place(kept: Mapping[str, Any], folder: Path, opened: bool) -> dict[str, Any]:
    """Tell where a store lies, and how many bytes it has there."""
    options = dict(kept.get("options") or {})
    within = kept.get("folder") or options.pop("path", None)
    options.pop("metric", None)
    place = None if within is None else folder / str(within)
    return {
        "name": kept.get("name"),
        "path": None if place is None else str(place),
        "size": _size(place) if opened and place is not None else None,
        "options": options,
    }


def _size(folder: Path) -> int:
    """Return how many bytes the files below a folder have; links are not followed."""
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            status = (Path(root) / name).lstat()
            size += status.st_size
    return size


def _contents_text(found: _Contents) -> str:
    count = "unknown" if found.images is None else f"{found.images:,}"
    cascade, single = found.cascade or {}, found.cascade is None
    rows = [
        ("classifier", found.path),
        ("encoder", _encoder_text(found.encoder, single)),
        *([("vectors", f"{count} of dimension {found.dim:,}")] if single else []),
        ("settings", _params_text(found.params)),
        *([("store", _store_text(found.store))] if single else _cascade_rows(cascade)),
        *_trust_rows(found.trust or {}),
        ("size", _size_text(found.size)),
        (
            "versions",
            f"written by clipretrieval {found.versions['written_by']} in format {found.versions['format']}; "
            f"this is clipretrieval {found.versions['clipretrieval']}",
        ),
    ]
    lines = [f"{name:<11} {readable(value)}" for name, value in rows]
    if cascade:
        lines += ["", *_exit_lines(cascade)]
    if found.classes is None:
        return "\n".join([*lines, f"{'classes':<11} unknown"])
    counts = [(readable(each["label"]), f"{each['images']:,}") for each in found.classes]
    width = max([len("class"), *(len(name) for name, _ in counts)])
    return "\n".join(
        [*lines, "", *(f"{name:<{width}} {count:>9}" for name, count in [("class", "images"), *counts])]
    )


def _cascade_rows(cascade: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tell what decides when an image leaves, and what was calibrated."""
    from clipretrieval.cascade.calibration import Calibration

    told = cascade["calibration"]
    text = "not yet, so all images go to the last exit"
    if told is not None:
        text = calibration_text(Calibration.from_dict(told)).removeprefix("calibrated ")
    vectorless = any(each["keeps_vectors"] is False for each in cascade["exits"])
    vectors = ", vectors kept at the last alone" if vectorless else ""
    return [
        ("exits", f"{len(cascade['exits'])}, certainty {cascade['certainty']}{vectors}"),
        *zip(("calibrated", ""), text.splitlines(), strict=False),
    ]


def _trust_rows(trust: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe the calibration, the prediction sets and the label of unknown images."""
    rows = []
    if (told := trust.get("calibrated")) is not None:
        rows.append(("calibrated", f"by {told['method']}, on {told['n']:,} images"))
    if (told := trust.get("conformalized")) is not None:
        each = " of each class" if told["class_conditional"] else ""
        rows.append(
            (
                "sets",
                f"conformalized by {told['score']}, on {told['n']:,} images: coverage of up to "
                f"{told['most_coverage']:.2%}{each}",
            )
        )
    if trust.get("unknown") is not None:
        turned = f"{trust['max_turned_away']:.2%} of the images of known classes"
        rows.append(("unknown", f"labeled {trust['unknown']}, for at most {turned}"))
    return rows


def _exit_lines(cascade: Mapping[str, Any]) -> list[str]:
    """Return a line for each exit: what it holds, and, where that was calibrated, the share that left."""
    told = cascade["calibration"]
    shares = [None] * len(cascade["exits"]) if told is None else told["shares"]
    rows = [["exit", "dimension", "images", "arithmetic", "left in calibration"]]
    for each, share in zip(cascade["exits"], shares, strict=True):
        images = "unknown" if each["images"] is None else f"{each['images']:,}"
        left = "-" if share is None else f"{share:.2%}"
        rows.append([readable(each["stage"]), f"{each['dim']:,}", images, f"{each['arithmetic']:.2f}", left])
    stores = ["store", *(_store_text(each["store"]) for each in cascade["exits"])]
    return [f"{line}  {readable(store)}" for line, store in zip(aligned_table(rows), stores, strict=True)]


def _params_text(params: Mapping[str, Any]) -> str:
    """Write how it answers; the arguments of the votes only where the neighbors vote."""
    from clipretrieval.heads.choice import HEADS, head_name, read_head

    head = params["head"]
    name = head if isinstance(head, str) else head_name(read_head(head, "head"))
    absent = ("priors",) if name == HEADS[0] else ("weights", "temperature")
    shown = {each: value for each, value in params.items() if each not in ("head", *absent)}
    return _values_text({"head": name, **shown})


def _encoder_text(encoder: dict[str, Any] | None, staged: bool) -> str:
    if encoder is None:
        return "none: it classifies vectors"
    config = encoder["config"]
    shown = {name: value for name, value in (config or {}).items() if staged or name != "stage"}
    return f"{encoder['class']}, of your own" if config is None else _values_text(shown)


def _store_text(store: dict[str, Any]) -> str:
    if store["name"] is None:
        return "one that has to be passed when it is loaded"
    parts = [
        f"in {store['path']}" if store["path"] is not None else "",
        f"({_size_text(store['size'])})" if store["size"] is not None else "",
        _values_text(store["options"]),
    ]
    return " ".join([store["name"], *filter(None, parts)])


def _values_text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_word(value)}" for name, value in values.items())


def _word(value: Any) -> str:
    words = {True: "yes", False: "no", None: "none"}
    return words[value] if isinstance(value, bool) or value is None else str(value)


def _size_text(size: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
