"""Images encoded into files of vectors, a shard at a time."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dying_encoder import Dying
from own_encoder import Quarters
from PIL import Image
from warm_process import WarmProcess, run_warm

from clipretrieval import (
    ClipRetrievalWarning,
    FingerprintMismatchError,
    ImageDecodeError,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    StoreUnavailableError,
)
from clipretrieval.images import scan_folder
from clipretrieval.vectors import encode

ENCODE = """
import sys
from clipretrieval.vectors import encode
sys.path.insert(0, sys.argv[1])
import dying_encoder
kind, argument, source, parts, workers = sys.argv[2:]
encoder = dying_encoder.Dying(argument, 2) if kind == "Dying" else dying_encoder.Waiting(argument)
encode(source, parts, encoder, shards=4, workers=int(workers))
"""


def contents(store):
    ids = sorted(name for listing in store.scan() for name in listing.ids.tolist())
    records = store.get(ids)
    return ids, records.vectors.tolist(), records.labels.tolist(), records.metadata


@pytest.fixture
def pictures(class_folder, tmp_path):
    return shutil.copytree(class_folder / "train", tmp_path / "pictures")


def test_parts_fill_a_classifier_as_the_images_do(encoder, fitted, class_folder, tmp_path):
    """Whatever they are cut into, in one process or run one by one: ids, vectors, labels and paths."""
    for shards in (1, 5, 40):
        parts = tmp_path / str(shards)
        report = encode(class_folder / "train", parts, encoder, shards=shards)
        assert (report.images, report.new, len(report.parts)) == (24, 24, shards)
        read = RetrievalClassifier.from_vectors("memory", parts / "*.parquet", encoder=encoder, k=3)
        assert contents(read.store_) == contents(fitted.store_)
    apart = tmp_path / "apart"
    for number in (3, 1, 2):
        one = encode(class_folder / "train", apart, encoder, shard=number, shards=3)
        assert [part.number for part in one.parts] == [number]
    assert encode(os.path.relpath(class_folder / "train"), apart, encoder).new == 0
    read = RetrievalClassifier.from_vectors("memory", apart, encoder=encoder, k=3)
    assert contents(read.store_) == contents(fitted.store_)
    asked = class_folder / "test"
    assert read.predict(asked).tolist() == fitted.predict(asked).tolist()
    with pytest.warns(ClipRetrievalWarning, match="2 of the 3 parts of .* part 1 first"):
        RetrievalClassifier.from_vectors("memory", apart / "part-00002-*", encoder=encoder)


def test_two_processes_encode_what_one_does(encoder, class_folder, tmp_path):
    """Also an encoder that has to be made again in each."""
    one = encode(class_folder / "train", tmp_path / "one", StagedEncoder(stage="pixel"), shards=4)
    two = encode(class_folder / "train", tmp_path / "two", StagedEncoder(stage="pixel"), shards=4, workers=2)
    assert [path.name for path in one.paths] == [path.name for path in two.paths]
    for left, right in zip(one.paths, two.paths, strict=True):
        pd.testing.assert_frame_equal(pd.read_parquet(left), pd.read_parquet(right))


def test_a_process_that_is_killed_is_replaced(fitted, class_folder, tmp_path):
    """Another one does its shard; one that dies every time is told of, and what is done is kept."""
    encoder = Dying(str(tmp_path / "died"), 1)
    report = encode(class_folder / "train", tmp_path / "parts", encoder, shards=4, workers=2)
    assert (tmp_path / "died").exists()
    assert (report.images, len(report.parts)) == (24, 4)
    read = RetrievalClassifier.from_vectors("memory", tmp_path / "parts", encoder=encoder, k=3)
    assert contents(read.store_) == contents(fitted.store_)
    hopeless = Dying("", 0)
    with pytest.raises(StoreUnavailableError, match=r"__main__.*What is done is kept"):
        encode(class_folder / "train", tmp_path / "none", hopeless, shards=2, workers=2)


def test_a_run_that_is_killed_is_gone_on_with(encoder, fitted, class_folder, tmp_path):
    """What is done is not done again, and what was half done leaves nothing that is read."""
    parts = tmp_path / "parts"
    tests = Path(__file__).parent
    killed = run_warm(["-c", ENCODE, tests, "Dying", tmp_path / "died", class_folder / "train", parts, 1])
    assert killed.returncode == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert len(done) == 2
    assert len(list(parts.iterdir())) == 3
    report = encode(class_folder / "train", parts, encoder, shards=4)
    assert (report.images, report.new) == (24, 12)
    assert {name: (parts / name).stat().st_mtime_ns for name in done} == done
    read = RetrievalClassifier.from_vectors("memory", parts, encoder=encoder, k=3)
    assert contents(read.store_) == contents(fitted.store_)


def test_processes_end_with_the_one_that_started_them(class_folder, tmp_path):
    """Nobody would ask them to, and they would hold memory for ever."""
    (tmp_path / "numbers").mkdir()
    tests = Path(__file__).parent
    process = WarmProcess(
        ["-c", ENCODE, tests, "Waiting", tmp_path / "numbers", class_folder / "train", tmp_path / "parts", 2]
    )
    try:
        while len(numbers := list((tmp_path / "numbers").iterdir())) < 2:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
    while any(_runs(int(path.name)) for path in numbers):
        time.sleep(0.02)
    assert not list((tmp_path / "parts").glob("*.parquet"))


def _runs(number):
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_only_a_part_whose_images_have_changed_is_made_again(encoder, pictures, tmp_path):
    """It replaces the one before: other pixels, another time of change, or an image more."""
    parts = tmp_path / "parts"
    before = encode(pictures, parts, encoder, shards=4)
    Image.new("RGB", (30, 30), "red").save(pictures / "flower" / "03.png")
    for options in ({}, {"shard": 1, "shards": 4}):
        with pytest.raises(InvalidInputError, match=r"part-00001-.*replace=True"):
            encode(pictures, parts, encoder, **options)
    changed = encode(pictures, parts, encoder, replace=True)
    assert changed.new == 6
    assert sorted(parts.iterdir()) == changed.paths
    assert len({*before.paths} & {*changed.paths}) == 3
    Image.new("RGB", (30, 30), "blue").save(pictures / "temple" / "zz.png")
    grown = encode(pictures, parts, encoder, replace=True)
    assert grown.images == 25
    assert sorted(parts.iterdir()) == grown.paths
    read = RetrievalClassifier.from_vectors("memory", parts, encoder=encoder)
    assert contents(read.store_) == contents(RetrievalClassifier(encoder, "memory").fit(pictures).store_)
    old = grown.paths[3].read_bytes()
    os.utime(pictures / "temple" / "zz.png", ns=(1, 1))
    assert encode(pictures, parts, encoder, replace=True).new == 7
    grown.paths[3].write_bytes(old)
    with pytest.raises(InvalidInputError, match=r"both of shard 4 .*replace=True"):
        RetrievalClassifier.from_vectors("memory", parts, encoder=encoder)


def test_images_that_cannot_be_decoded_are_named_or_skipped(encoder, pictures, tmp_path):
    """The part says so itself, so that a second run does."""
    (pictures / "flower" / "bad.png").write_text("hello")
    with pytest.raises(ImageDecodeError, match=r"bad\.png"):
        encode(pictures, tmp_path / "parts", encoder, shards=3)
    with pytest.raises(ImageDecodeError, match=r"bad\.png"):
        encode(pictures, tmp_path / "parts", encoder, shards=3, workers=2)
    report = encode(pictures, tmp_path / "parts", encoder, shards=3, on_error="skip")
    again = encode(pictures, tmp_path / "parts", encoder, on_error="skip")
    assert (again.images, again.new) == (24, 0)
    assert [image.source for image in again.skipped] == [str(pictures / "flower" / "bad.png")]
    assert again.skipped == report.skipped
    assert "3 of which were there" in str(again)
    with pytest.raises(ImageDecodeError, match=r"bad\.png"):
        encode(pictures, tmp_path / "parts", encoder)
    assert encode(pictures, tmp_path / "parts", encoder, on_error="skip", replace=True).new == 7


def test_a_folder_takes_parts_of_one_encoder_and_one_cut(encoder, class_folder, pictures, tmp_path):
    """And of one source, unless those of another are to be removed."""
    parts = tmp_path / "parts"
    encode(class_folder / "train", parts, encoder, shards=2)
    with pytest.raises(
        FingerprintMismatchError, match=r"part-00001.*: scale: the part has 1.0, the encoder 2.0"
    ):
        encode(class_folder / "train", parts, Quarters(2.0), shards=2)
    with pytest.raises(FingerprintMismatchError, match="part-00001"):
        encode(class_folder / "train", parts, Quarters(2.0), shard=2, shards=2)
    with pytest.raises(InvalidInputError, match=r"into 2 shards, and now .* into 3: .* shards=2"):
        encode(class_folder / "train", parts, encoder, shards=3)
    for options in ({}, {"shard": 1}, {"shard": 3}):
        with pytest.raises(InvalidInputError, match=r"part-00001-.* another source .*train'.*replace=True"):
            encode(class_folder / "test", parts, encoder, shards=3, **options)
    three = encode(class_folder / "test", parts, encoder, shards=3, replace=True)
    assert sorted(parts.iterdir()) == three.paths
    copy = shutil.copytree(class_folder / "test", tmp_path / "copy")
    moved = encode(copy, parts, encoder, shards=3, replace=True)  # whose parts have the same names
    assert (moved.new, moved.paths, sorted(parts.iterdir())) == (10, three.paths, three.paths)
    encode(copy, tmp_path / "two", encoder, shards=2)
    with pytest.raises(InvalidInputError, match=r"cut into 3 shards, and .* cut into 2"):
        RetrievalClassifier.from_vectors("memory", [parts, tmp_path / "two"], encoder=encoder)
    paths = scan_folder(class_folder / "test").paths
    encode(paths, tmp_path / "list", encoder, labels=["old"] * 10)
    with pytest.raises(InvalidInputError, match=r"another source .*list-"):
        encode(paths[1:], tmp_path / "list", encoder, labels=["new"] * 9)
    labels = ["new", *["newer"] * 8]
    encode(paths[1:], tmp_path / "list", encoder, labels=labels, replace=True)
    listed = RetrievalClassifier.from_vectors("memory", tmp_path / "list", encoder=encoder)
    assert (listed.classes_.tolist(), listed.store_.count()) == (["new", "newer"], 9)


def test_lists_and_tables_of_paths_are_encoded(encoder, class_folder, tmp_path):
    """Labels of any type, or none; what is no file is refused."""
    folder = scan_folder(class_folder / "train")
    numbers = [int(label == "temple") for label in folder.labels]
    encode(folder.paths, tmp_path / "list", encoder, labels=numbers)
    read = RetrievalClassifier.from_vectors("memory", tmp_path / "list", encoder=encoder)
    assert read.classes_.tolist() == [0, 1]
    frame = pd.DataFrame({"path": list(map(str, folder.paths)), "label": [n > 0 for n in numbers]})
    encode(frame, tmp_path / "frame", encoder)
    read = RetrievalClassifier.from_vectors("memory", tmp_path / "frame", encoder=encoder)
    assert read.classes_.tolist() == [False, True]
    frame.astype({"label": str}).to_csv(tmp_path / "table.csv", index=False)
    assert encode(tmp_path / "table.csv", tmp_path / "table", encoder).images == 24
    encode(folder.paths[:2], tmp_path / "bare", encoder)
    with pytest.raises(InvalidInputError, match=r"row 0 of .* has no label"):
        RetrievalClassifier.from_vectors("memory", tmp_path / "bare", encoder=encoder)
    labelled = RetrievalClassifier.from_vectors("memory", tmp_path / "bare", ["a", "b"], encoder=encoder)
    assert labelled.store_.count() == 2
    for source, message in (
        ([np.zeros((8, 8, 3), np.uint8)], "item 0 of the source .* encode takes files"),
        ([], "source is empty"),
        (folder.paths[0], "is one image"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            encode(source, tmp_path / "none", encoder)
    with pytest.raises(InvalidInputError, match="24 images and 1 labels"):
        encode(folder, tmp_path / "none", encoder, labels=["a"])


def test_a_runner_of_ones_own_runs_the_shards(encoder, fitted, class_folder, tmp_path):
    """In any order; what it leaves out, or makes up, is told of."""
    told = []
    report = encode(
        class_folder / "train",
        tmp_path / "parts",
        encoder,
        shards=3,
        runner=lambda encoder, jobs, workers: [job.run(encoder) for job in reversed(jobs)],
        progress=lambda done, total: told.append((done, total)),
    )
    assert [part.number for part in report.parts] == [1, 2, 3]
    assert told == [(0, 24), (8, 24), (16, 24), (24, 24)]
    for runner, message in (
        (lambda encoder, jobs, workers: [], "left out 2 of 2 shards"),
        (lambda encoder, jobs, workers: [1], "the runner yielded 1"),
        (lambda encoder, jobs, workers: 1, "the runner returned 1"),
        ("slurm", "runner must be one of 'local', 'ray', 'dask', or a function"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            encode(class_folder / "test", tmp_path / "none", encoder, shards=2, runner=runner)


def test_arguments_that_cannot_be_are_refused(encoder, class_folder, tmp_path):
    """Each in its own words."""
    source = class_folder / "train"
    for options, message in (
        ({"shard": 2}, "shard needs shards"),
        ({"shard": 3, "shards": 2}, "shard must be a whole number, at least 1 and at most 2"),
        ({"workers": 0}, "workers must be"),
        ({"shards": 0}, "shards must be"),
        ({"on_error": "ignore"}, "on_error"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            encode(source, tmp_path / "parts", encoder, **options)

    class Local(Quarters):
        pass

    with pytest.raises(InvalidInputError, match="cannot be handed to other processes"):
        encode(source, tmp_path / "parts", Local(), shards=2, workers=2)

    class Unloadable(Quarters):
        def __reduce__(self):
            return int, ("no number",)

    with pytest.raises(InvalidInputError, match=r"cannot load the encoder .*'no number'"):
        encode(source, tmp_path / "parts", Unloadable(), shards=2, workers=2)
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailableError, match="cannot be made"):
        encode(source, tmp_path / "file", encoder)
