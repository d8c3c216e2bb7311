"""Images encoded into files of vectors, a shard at a time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from clipretrieval._util.checks import check_bool, check_int, check_path, check_sequence, shown
from clipretrieval._util.files import TEMPORARY_SUFFIX
from clipretrieval._util.labels import check_labelled, label_kind, stored_labels
from clipretrieval._util.progress import Progress, open_progress
from clipretrieval.encoding.base import Encoder
from clipretrieval.encoding.fingerprint import differences
from clipretrieval.errors import FingerprintMismatchError, InvalidInputError, StoreUnavailableError
from clipretrieval.images.folders import ImageFolder
from clipretrieval.images.listing import listed
from clipretrieval.images.sources import open_labels
from clipretrieval.images.stream import check_on_error
from clipretrieval.images.tables import ImageTable, is_saved_dataset
from clipretrieval.images.tars import ImageTars
from clipretrieval.images.urls import is_url, url_name, url_state
from clipretrieval.retrieval.manifest import plain_fingerprint
from clipretrieval.retrieval.parameters import check_encoder
from clipretrieval.vectors.arrow_content import arrow, open_arrow_file
from clipretrieval.vectors.encode_report import EncodeReport
from clipretrieval.vectors.local_runner import run_locally
from clipretrieval.vectors.opened_source import OpenedSource
from clipretrieval.vectors.part_manifest import PartManifest
from clipretrieval.vectors.part_report import PartReport
from clipretrieval.vectors.part_writer import read_skipped
from clipretrieval.vectors.shard_job import ShardJob
from clipretrieval.vectors.url_identity import url_identity
from clipretrieval.vectors.vector_files import check_local_path

__all__ = ["IMAGES", "Runner", "encode"]

Runner: TypeAlias = Callable[[Encoder, Sequence[ShardJob], int], Iterable[PartReport]]
"""Given the encoder, shards and a number of workers, runs `ShardJob.run` for each and yields the results."""

IMAGES = 4096
"""Of a shard, at most, where their number is left open."""
_RUNNERS = ("local", "ray", "dask")
_DIGITS = 16
"""Of the hash in a part's name."""
_PART = re.compile(r"part-(\d{5,})-of-(\d{5,})-[0-9a-f]{16}\.parquet")
_OLD = 24 * 3600
"""Seconds after which a temporary file is what a kill has left."""


@dataclass(frozen=True, eq=False)
class _Listed:
    """The images of a source, in its order, or its tars."""

    name: str
    items: Sequence[Any]
    labels: Sequence[Any] | None
    kind: str | None
    state: Callable[[int], Sequence[Any]]
    """Of an item: what tells whether it is the same."""
    tars: ImageTars | None = None
    choice: Sequence[str | None] = ()
    """What was chosen of what the images' files hold."""


def encode(
    source: Any,
    parts: str | Path,
    encoder: Encoder,
    *,
    labels: Any = None,
    workers: int = 1,
    shards: int | None = None,
    shard: int | None = None,
    replace: bool = False,
    runner: str | Runner = "local",
    on_error: str = "raise",
    progress: Progress | bool | None = None,
) -> EncodeReport:
    """Encode images into Parquet files, which `RetrievalClassifier.from_vectors` reads.

    The source is cut into shards, in its order. Each becomes one file, a part, in the form that
    `RetrievalClassifier.export` writes. A part is named by its shard and by a hash of what decides it: the
    encoder, and each image's path, size, time of change and label. It takes that name when it is complete. So
    the same call, after a failure or a kill, encodes only what is missing. Images that are added or removed
    move those behind them to other shards.

    Parameters
    ----------
    source : path or URL of a folder or of tars, path of a table, table of paths, or sequence of paths or URLs
        See `clipretrieval.images`. Of images behind URLs in a table or sequence, changes are not seen.
    parts : str or Path
        The folder of the parts; made if missing.
    encoder : Encoder
    labels : sequence of int or of str, optional
        Where the source brings none. Images without are encoded, too.
    workers : int
        Processes that encode. Each has its share of the cores; with CUDA, each has one of the GPUs.
    shards : int, optional
        How many to cut into. When left out, so many that each has 4,096 images at most, or one for each
        tar, or as many as the folder's parts of this source were cut into.
    shard : int, optional
        The only one to encode, counted from 1: for schedulers, which run each by a command of its own. It
        needs `shards`.
    replace : bool
        Whether to make anew the parts of shards whose images have changed since, or have become more, and
        those that have skipped images, and to remove the parts of another source. Otherwise, parts of changed
        images or of another source are refused.
    runner : {"local", "ray", "dask"} or callable
        Who runs the shards: processes of this machine; or the Ray or Dask cluster that this program is
        connected to or that ``RAY_ADDRESS`` or ``DASK_SCHEDULER_ADDRESS`` names, or else Ray or Dask on this
        machine. A callable is given the encoder, a list of `ShardJob` and `workers`, and yields the results
        of their ``run(encoder)`` in any order. Workers elsewhere need the images and `parts` under the same
        paths.
    on_error : {"raise", "skip"}
        What to do about an image that cannot be decoded, or whose vector cannot be used. A part that has
        skipped some is made anew under ``"raise"``.
    progress : callable or True, optional
        Called with (images done, total) after every shard; of tars, with these.

    Returns
    -------
    EncodeReport

    Raises
    ------
    InvalidInputError
        If the source holds anything but files, an argument is wrong, or the parts in the folder are of
        another source, or of another cut of this one, or of images that have changed.
    FingerprintMismatchError
        If the folder holds parts of a different encoder; the message names one, and what differs.
    ImageDecodeError
        If an image cannot be decoded.
    StoreUnavailableError
        If the folder cannot be written to, processes keep dying, or a cluster or URL cannot be reached.
    MissingDependencyError
        If pyarrow, or what `runner` names, is not installed.

    Examples
    --------
    >>> from clipretrieval import StagedEncoder
    >>> from clipretrieval.vectors import encode
    >>> report = encode("animals/train", "parts/", StagedEncoder(stage="pixel"))  # doctest: +SKIP
    """
    started = time.perf_counter()
    arrow()
    check_on_error(on_error)
    replace = check_bool(replace, "replace")
    check_encoder(encoder)
    if encoder is None:
        raise InvalidInputError("encoder is None; pass a StagedEncoder, or another encoder")
    workers = check_int(workers, "workers")
    run = _runner(runner)
    images = _list(source, labels)
    folder = _made_folder(parts)
    there = {path: match for path in folder.iterdir() if (match := _PART.fullmatch(path.name)) is not None}
    cut = _number_of_shards(images, shards, shard, there)
    fingerprint = plain_fingerprint(encoder.fingerprint)
    wanted = range(1, cut + 1) if shard is None else [check_int(shard, "shard", most=cut)]
    jobs = [_job(images, number, cut, encoder, fingerprint, folder, on_error) for number in wanted]
    older = _check_parts(there, images.name, cut, fingerprint, jobs, every=shard is None, replace=replace)
    found_there = {job.number: _report_of(job) for job in jobs if job.path in there}
    again = replace or on_error == "raise"
    reports = {
        number: each
        for number, each in found_there.items()
        if each.path not in older and not (again and each.skipped)
    }
    due = [job for job in jobs if job.number not in reports]
    total = sum(job.count for job in jobs)
    with open_progress(progress, "encoding") as tell:
        tell(total - sum(job.count for job in due), total)
        sizes = {job.number: job.count for job in due}
        found = run(encoder, due, workers) if due else ()
        if not isinstance(found, Iterable):
            raise InvalidInputError(
                f"the runner returned {shown(found)}; it must yield what ShardJob.run returned"
            )
        for report in found:
            if not isinstance(report, PartReport) or report.number not in sizes:
                raise InvalidInputError(
                    f"the runner yielded {shown(report)}; it must yield what ShardJob.run returned, once each"
                )
            reports[report.number] = report
            del sizes[report.number]
            tell(total - sum(sizes.values()), total)
    if sizes:
        raise InvalidInputError(f"the runner has left out {len(sizes)} of {len(due)} shards")
    for path in {*older} - {job.path for job in jobs}:  # a copy of a source gives its parts the same names
        path.unlink(missing_ok=True)
    return EncodeReport(tuple(reports[number] for number in sorted(reports)), time.perf_counter() - started)


def _runner(runner: Any) -> Runner:
    if callable(runner) and not isinstance(runner, type):
        own: Runner = runner
        return own
    if isinstance(runner, str) and runner == "ray":
        from clipretrieval.vectors.ray_runner import run_on_ray

        return run_on_ray
    if isinstance(runner, str) and runner == "dask":
        from clipretrieval.vectors.dask_runner import run_on_dask

        return run_on_dask
    if not isinstance(runner, str) or runner != "local":
        raise InvalidInputError(
            f"runner must be one of {', '.join(map(repr, _RUNNERS))}, or a function; got {shown(runner)}"
        )
    return run_locally


def _list(source: Any, labels: Any) -> _Listed:
    """List the images of a source, with their labels."""
    opened = source if isinstance(source, OpenedSource) else None
    if opened is not None:
        source = opened.place
    name, is_place = "", isinstance(source, str | os.PathLike)
    if is_place:
        name = _place_name(source)
    found = listed(source) if opened is None else opened.images
    if is_place and found is source:
        raise InvalidInputError(
            f"{shown(url_name(source))} is one image; pass a folder, a tar, a table of paths, or a "
            "sequence of paths"
        )
    if isinstance(found, ImageTars):
        if labels is not None:
            raise InvalidInputError("labels cannot be passed for tars, which hold their own; leave them out")
        found = found.as_begun()
        if found.kind is None and opened is not None:
            raise InvalidInputError(
                f"the first image of {url_name(found.paths[0])!r} has no label: looked for a member .cls, a "
                'key "label" of .json, and .txt'
            )
        paths = [path if is_url(path) else os.path.abspath(path) for path in found.paths]  # noqa: PTH100
        state = _state_of(paths, "", lambda place: _tar_state(paths[place]))
        name = name or (_place_name(paths[0]) if len(paths) == 1 else _list_name(paths))
        return _Listed(name, found.paths, None, found.kind, state, found, (found.label, found.member))
    items: Sequence[Any]
    own: Sequence[Any] | None = None
    root, states = "", None
    if isinstance(found, ImageFolder):
        name, items, own = name or str(found.root.resolve()), list[Any](found.paths), found.labels
        root = str(found.root)
    elif isinstance(found, ImageTable):
        items, own, states = found.images, found.labels, found.states
    else:
        items = check_sequence(found, "source", "paths")
    choice: tuple[str | None, ...] = ()
    if is_saved_dataset(source):
        state, choice = _row_state(Path(source), items), (None if opened is None else opened.column,)
    else:
        items = _checked_paths(items)
        name = name or _list_name(items)  # lists are the same source if they name the same files
        state = _state_of(items, root) if states is None else _state_of(items, root, states.__getitem__)
    if not items:
        raise InvalidInputError("the source is empty; pass at least one image")
    given = own if labels is None else list(open_labels(labels)[1])
    if given is None:
        return _Listed(name, items, None, None, state, choice=choice)
    if len(given) != len(items):
        raise InvalidInputError(f"there are {len(items)} images and {len(given)} labels; pass one each")
    check_labelled(given)
    kind = label_kind(given)
    stored = stored_labels(given, kind)
    if kind == "bool":
        stored = [bool(each) for each in stored]
    return _Listed(name, items, stored, kind, state, choice=choice)


def _checked_paths(items: Sequence[Any]) -> list[str]:
    for place, item in enumerate(items):
        if not isinstance(item, str | os.PathLike):
            raise InvalidInputError(
                f"item {place} of the source is {shown(item)}; encode takes files, which other processes can "
                "open: a folder, a tar, a table of paths, or a sequence of paths. To encode images in "
                "memory: encoder.encode(images)"
            )
    return [os.fsdecode(item) for item in items]


def _place_name(place: str | os.PathLike[str]) -> str:
    return url_identity(place) if is_url(place) else str(check_path(place, "source").resolve())


def _list_name(paths: Sequence[str]) -> str:
    joined = "\n".join(url_identity(path) if is_url(path) else path for path in paths)
    digest = hashlib.sha256(joined.encode("utf-8", "surrogateescape"))
    return f"list-{digest.hexdigest()[:_DIGITS]}"


def _row_state(folder: Path, items: Sequence[Any]) -> Callable[[int], Sequence[Any]]:
    """Return what tells of a row of a dataset whether it is the same.

    That is its place, the state of the dataset's files, beside which caches may lie, and, of a row that is a
    path, that of the image's file.
    """
    state = json.loads((folder / "state.json").read_bytes())
    names = ["state.json", "dataset_info.json", *(each["filename"] for each in state["_data_files"])]
    files = _state_of([str(folder / name) for name in names], str(folder))
    version = hashlib.sha256(json.dumps([files(place) for place in range(len(names))]).encode()).hexdigest()
    first = next((item for item in items if item is not None), None)
    if not isinstance(first, str | os.PathLike):  # to look at each would read all images
        return lambda place: (place, version)

    def row(place: int) -> Sequence[Any]:
        item = items[place]
        if not isinstance(item, str | os.PathLike):
            return place, version
        return place, version, *_state_of([os.fsdecode(item)])(0)

    return row


def _state_of(
    paths: Sequence[str], root: str = "", url_states: Callable[[int], str] = lambda place: ""
) -> Callable[[int], Sequence[Any]]:
    """Return what tells of a file whether it is the same: its path, and its size and time of change.

    Of a URL in a list only the URL is looked at: to ask for each image would take longer than to encode it.
    """

    def state(place: int) -> Sequence[Any]:
        path = paths[place]
        if is_url(path):
            return url_identity(path), url_states(place)
        try:
            found = os.stat(path)  # noqa: PTH116  ten million of them
        except (OSError, ValueError):  # what is no file is told when it is decoded
            return path.removeprefix(root), -1, -1
        return path.removeprefix(root), found.st_size, found.st_mtime_ns

    return state


def _tar_state(path: str) -> str:
    try:
        return url_state(path)
    except FileNotFoundError as error:
        raise InvalidInputError(f"{url_name(path)!r} cannot be read: {error.strerror}") from None


def _made_folder(parts: str | Path) -> Path:
    folder = check_local_path(parts, "parts")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f".part-*{TEMPORARY_SUFFIX}"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _OLD:
                    path.unlink()
    except OSError as error:
        raise StoreUnavailableError(
            f"the folder {str(folder)!r} cannot be made: {error.strerror or error}; pass another"
        ) from error
    return folder


def _number_of_shards(source: _Listed, shards: Any, shard: Any, there: dict[Path, re.Match[str]]) -> int:
    if shards is not None:
        return check_int(shards, "shards")
    if shard is not None:
        raise InvalidInputError("shard needs shards, of how many it is one: shard=3, shards=128")
    for path, match in sorted(there.items()):
        if _manifest(path).shard.get("source") == source.name:
            return int(match[2])
    return math.ceil(len(source.items) / (IMAGES if source.tars is None else 1))


def _job(
    source: _Listed,
    number: int,
    of: int,
    encoder: Encoder,
    fingerprint: dict[str, Any],
    folder: Path,
    on_error: str,
) -> ShardJob:
    """Take one of `of` runs of images, as long as one another."""
    count = len(source.items)
    part = slice((number - 1) * count // of, number * count // of)
    items = source.items[part]
    labels = None if source.labels is None else source.labels[part]
    digest = hashlib.sha256(json.dumps([fingerprint, *source.choice], sort_keys=True).encode())
    for place in range(part.start, part.stop):
        label = None if labels is None else labels[place - part.start]
        digest.update(json.dumps([*source.state(place), label]).encode() + b"\n")
    return ShardJob(
        number=number,
        of=of,
        source=source.name,
        contents=digest.hexdigest()[:_DIGITS],
        images=items if source.tars is None else replace(source.tars, paths=tuple(items)),
        count=len(items),
        labels=labels,
        kind=source.kind,
        fingerprint=fingerprint,
        dim=int(encoder.dim),
        folder=folder,
        on_error=on_error,
    )


def _manifest(path: Path) -> PartManifest:
    manifest = PartManifest.read(open_arrow_file(path).schema.metadata, repr(str(path)))
    if manifest is None:
        raise InvalidInputError(
            f"{str(path)!r} is named as a part and is none; move it out of the folder of the parts"
        )
    return manifest


def _check_parts(
    there: dict[Path, re.Match[str]],
    source: str,
    cut: int,
    fingerprint: dict[str, Any],
    jobs: Sequence[ShardJob],
    *,
    every: bool,
    replace: bool,
) -> list[Path]:
    """Refuse a folder whose parts cannot be read beside those that come, and return what these replace.

    All are looked at, or, of one shard, those of the same number and one more: shards are run side by side.
    """
    numbers = {job.number: job for job in jobs}
    paths = sorted(there)
    if not every and not replace:
        paths = [path for place, path in enumerate(paths) if place == 0 or int(there[path][1]) in numbers]
    older = []
    for path in paths:
        try:
            manifest = _manifest(path)
        except InvalidInputError:
            if path.exists():
                raise
            continue  # who encodes another shard has removed it
        faults = differences(manifest.encoder, fingerprint, words=("the part has", "the encoder"))
        if faults:
            raise FingerprintMismatchError(
                f"{str(path)!r} was made by a different encoder: {'; '.join(faults)}. Pass another folder "
                "for the parts"
            )
        other = manifest.shard.get("source")
        if other != source and not replace:
            raise InvalidInputError(
                f"{str(path)!r} is of another source ({shown(other)}), and a folder holds the parts of one: "
                "a list is another source once its paths change. Pass another folder for the parts, or "
                "replace=True to remove those that are there"
            )
        if other != source:
            older.append(path)
            continue
        before = manifest.shard.get("of")
        if before != cut:
            raise InvalidInputError(
                f"{str(path)!r} is of a cut of the same source into {before} shards, and now it is cut into "
                f"{cut}: images would be there twice. Pass shards={before}, or another folder for the parts"
            )
        job = numbers.get(int(there[path][1]))
        if job is not None and path != job.path and job.is_of_same_shard(manifest.shard):
            older.append(path)
    if older and not replace:
        raise InvalidInputError(
            f"{str(older[0])!r} is of the same shard of the same source, whose images or labels have changed "
            "since; or another machine has others under the same path. Pass replace=True to encode those "
            "that are there now in its place, or another folder for the parts"
        )
    return older


def _report_of(job: ShardJob) -> PartReport:
    """Return the report of a part that is there."""
    content = open_arrow_file(job.path)
    return PartReport(
        job.number, job.path, int(content.count or 0), read_skipped(content.schema.metadata), was_there=True
    )
