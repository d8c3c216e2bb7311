"""Tars, URLs and saved datasets, encoded in parts as files are."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
import tarfile

import fsspec
import pandas as pd
import pytest

from clipretrieval import InvalidInputError, RetrievalClassifier
from clipretrieval.images import read_tars, scan_folder
from clipretrieval.vectors import encode
from clipretrieval.vectors.opened_source import OpenedSource
from clipretrieval.vectors.url_identity import url_identity


def pack(path, files, label=lambda file: file.parent.name, member=".cls"):
    """Write files and their labels into a tar."""
    with tarfile.open(path, "w") as tar:
        for number, file in enumerate(files):
            for ending, content in ((file.suffix, file.read_bytes()), (member, str(label(file)).encode())):
                info = tarfile.TarInfo(f"{number:04}{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def elsewhere(encoder, jobs, workers):
    """Run jobs as another process would get them."""
    return [job.run(encoder) for job in pickle.loads(pickle.dumps(jobs))]


@pytest.fixture
def tars(class_folder, tmp_path):
    """The 24 images in three tars."""
    paths = scan_folder(class_folder / "train").paths
    for number in range(3):
        pack(tmp_path / f"t-{number}.tar", paths[number::3])
    return tmp_path / "t-{0..2}.tar"


def answers(classifier, class_folder):
    near = classifier.kneighbors(class_folder / "test", 3)
    return near.ids.tolist(), near.distances.tolist(), classifier.predict(class_folder / "test").tolist()


def test_tars_are_encoded_one_by_one(encoder, fitted, tars, class_folder, tmp_path):
    """Into the classifier that the files fill, in processes as well; a tar that has changed is seen."""
    report = encode(tars, tmp_path / "parts", encoder, runner=elsewhere)
    assert (report.images, len(report.paths)) == (24, 3)
    assert encode(os.path.relpath(tars), tmp_path / "parts", encoder).new == 0
    read = RetrievalClassifier.from_vectors("memory", tmp_path / "parts", encoder=encoder, k=3)
    assert answers(read, class_folder) == answers(fitted, class_folder)
    assert answers(RetrievalClassifier(encoder, "memory", k=3).fit(tars), class_folder) == answers(
        fitted, class_folder
    )
    sources = pd.read_parquet(report.paths[1]).source
    assert sources[0] == f"{tmp_path}/t-1.tar/0000.png"
    assert encode(tars, tmp_path / "two", encoder, shards=2, shard=2).images == 16
    os.utime(tmp_path / "t-1.tar", ns=(1, 1))
    with pytest.raises(InvalidInputError, match=r"part-00002-.*replace=True"):
        encode(tars, tmp_path / "parts", encoder)
    assert encode(tars, tmp_path / "parts", encoder, replace=True).new == 8


def test_labels_of_tars_are_of_one_type(encoder, tars, class_folder, tmp_path):
    """Also where other processes read the others; and they may be chosen."""
    paths = scan_folder(class_folder / "test").paths
    pack(tmp_path / "t-1.tar", paths[:4], label=lambda file: 2 + paths.index(file) % 2)
    with pytest.raises(
        InvalidInputError, match=r"label of '.*t-1\.tar/0000\.\w+': labels must all be of one"
    ):
        encode(tars, tmp_path / "parts", encoder)
    whole = read_tars([tmp_path / "t-1.tar"])
    encode(whole, tmp_path / "numbers", encoder)
    numbers = RetrievalClassifier.from_vectors("memory", tmp_path / "numbers", encoder=encoder)
    assert numbers.classes_.tolist() == [2, 3]
    with pytest.raises(InvalidInputError, match="labels cannot be passed for tars"):
        encode(whole, tmp_path / "parts", encoder, labels=[1])
    raw = (tmp_path / "t-2.tar").read_bytes()
    (tmp_path / "t-2.tar").write_bytes(raw[:-20_000])
    with pytest.raises(InvalidInputError, match=r"t-2\.tar' is no tar file, or damaged behind '00"):
        encode(tmp_path / "t-2.tar", tmp_path / "cut", encoder)
    assert not list((tmp_path / "cut").glob("*.parquet"))


def test_labels_of_tars_lie_in_one_kind_of_member(encoder, class_folder, tmp_path):
    """A tar of captions behind one of classes is refused, whoever reads it, and one of captions is not."""
    paths = scan_folder(class_folder / "train").paths
    classes, captions = (
        pack(tmp_path / f"{number}.tar", paths[number::2], member=member)
        for number, member in enumerate((".cls", ".txt"))
    )
    both = read_tars([classes, captions])
    for use in (
        RetrievalClassifier(encoder, "memory").fit,
        lambda tars: encode(tars, tmp_path / "parts", encoder),
    ):
        with pytest.raises(
            InvalidInputError, match=r"1\.tar/0000\.\w+': it has no label in its member \.cls"
        ):
            use(both)
    assert encode(captions, tmp_path / "captions", encoder).new == 12


def test_folders_and_tars_behind_urls_are_encoded(encoder, fitted, tars, class_folder, tmp_path):
    """In processes of their own, too; an image that has changed there is seen."""
    copied = shutil.copytree(class_folder / "train", tmp_path / "copied")
    url = f"file://{copied}"
    report = encode(url, tmp_path / "parts", encoder, shards=4, runner=elsewhere)
    read = RetrievalClassifier.from_vectors("memory", tmp_path / "parts", encoder=encoder, k=3)
    assert answers(read, class_folder) == answers(fitted, class_folder)
    assert pd.read_parquet(report.paths[0]).source[0].startswith(f"{url}/flower/")
    assert encode(url, tmp_path / "parts", encoder).new == 0
    os.utime(copied / "flower" / "00.jpg", ns=(1, 1))
    with pytest.raises(InvalidInputError, match=r"part-00001-.*replace=True"):
        encode(url, tmp_path / "parts", encoder)
    assert encode(url, tmp_path / "parts", encoder, replace=True).new == 6
    system = fsspec.filesystem("memory")
    for number in range(3):
        system.pipe(f"/t-{number}.tar", (tmp_path / f"t-{number}.tar").read_bytes())
    assert encode("memory://t-{0..2}.tar", tmp_path / "tars", encoder).images == 24
    assert encode("memory://t-{0..2}.tar", tmp_path / "tars", encoder).new == 0
    system.pipe("/t-1.tar", (tmp_path / "t-2.tar").read_bytes())
    with pytest.raises(InvalidInputError, match=r"part-00002-.*replace=True"):
        encode("memory://t-{0..2}.tar", tmp_path / "tars", encoder)
    system.store.clear()


def test_secrets_of_urls_are_kept(encoder, class_folder, tmp_path, monkeypatch):
    """Neither a part nor a job that is printed has them, and another signature makes no other source."""
    content = (class_folder / "train" / "flower" / "00.jpg").read_bytes()
    monkeypatch.setattr("clipretrieval.images.decoding.read_url", lambda url: content)
    shown = []

    def run(encoder, jobs, workers):
        shown.extend(map(repr, jobs))
        return [job.run(encoder) for job in jobs]

    for secret in ("SECRET-1", "SECRET-2"):
        url = f"https://me:{secret}@host/a.jpg?sig={secret}"
        report = encode([url], tmp_path / "parts", encoder, labels=["a"], runner=run)
        shown += [repr(report), pd.read_parquet(report.paths[0]).source[0]]
    assert (report.new, len(shown)) == (0, 5)
    assert shown[2] == "https://host/a.jpg"
    assert not re.search("SECRET", "\n".join(shown) + report.paths[0].read_bytes().decode("latin1"))


def test_other_labels_of_tars_are_other_parts(encoder, class_folder, tmp_path):
    """And the same ones the same parts, however the tar is named."""
    file, tar = scan_folder(class_folder / "train").paths[0], tmp_path / "x.tar"
    with tarfile.open(tar, "w") as written:
        written.add(file, f"0{file.suffix}")
        info = tarfile.TarInfo("0.json")
        content = b'{"fine": "poodle", "coarse": "dog"}'
        info.size = len(content)
        written.addfile(info, io.BytesIO(content))
    assert encode(read_tars(tar, label="fine"), tmp_path / "parts", encoder).new == 1
    same = OpenedSource(os.path.relpath(tar), read_tars(os.path.relpath(tar), label="fine"))
    assert encode(same, tmp_path / "parts", encoder).new == 0
    other = read_tars(tar, label="coarse")
    with pytest.raises(InvalidInputError, match="images or labels have changed"):
        encode(other, tmp_path / "parts", encoder)
    encode(other, tmp_path / "parts", encoder, replace=True)
    assert pd.read_parquet(tmp_path / "parts").label.tolist() == ["dog"]


def test_queries_tell_urls_apart(encoder, class_folder, tmp_path, monkeypatch):
    """And stand in no part; what signs a URL does not."""
    content = (class_folder / "train" / "flower" / "00.jpg").read_bytes()
    monkeypatch.setattr("clipretrieval.images.decoding.read_url", lambda url: content)
    one = encode(["https://host/image?id=1234567"], tmp_path / "parts", encoder)
    assert one.new == 1
    assert b"1234567" not in one.paths[0].read_bytes()
    with pytest.raises(InvalidInputError, match="of another source"):
        encode(["https://host/image?id=7"], tmp_path / "parts", encoder)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://h/i?id=1", "https://h/i?id=2", False),
        ("https://h/i?key=a.png", "https://h/i?key=b.png", False),
        ("https://h/i?st=1", "https://h/i?st=2", False),
        ("https://h:80/a@2x.png", "https://h:80/b@2x.png", False),
        ("zip://a.png::https://h/i?id=1", "zip://a.png::https://h/i?id=2", False),
        ("https://h/i?id=1&token=a", "https://me:pw@h/i?id=1&token=b", True),
        ("https://h/i?X-Amz-Date=1&X-Amz-Signature=a", "https://h/i?X-Amz-Date=2&X-Amz-Signature=b", True),
        ("https://h/i?sv=1&st=1&se=1&sig=a", "https://h/i?sv=1&st=2&se=2&sig=b", True),
        ("https://h/i?Expires=1&Signature=a", "https://h/i", True),
    ],
)
def test_urls_tell_apart_what_no_signature_does(one, other, same):
    """What a URL is known by has the rest of its query, hashed."""
    assert (url_identity(one) == url_identity(other)) is same


def test_no_part_comes_out_of_a_cache(encoder, tars, class_folder, tmp_path):
    """Which holds what the file was before."""
    for source in (
        f"simplecache::file://{tmp_path}/t-0.tar",
        f"filecache::file://{class_folder}/train",
        ["zip://a.png::blockcache::https://host/x.zip"],
    ):
        with pytest.raises(InvalidInputError, match=r"through a cache.* leave '\w+cache::' out"):
            encode(source, tmp_path / "parts", encoder)


def test_saved_datasets_are_encoded(encoder, fitted, class_folder, tmp_path):
    """Their class labels stay numbers; a split has to be chosen; what is no dataset is told."""
    datasets = pytest.importorskip("datasets")
    folder = scan_folder(class_folder / "train")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["flower", "temple"])}
    )
    rows = {"image": [str(path) for path in folder.paths], "label": list(folder.labels)}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(tmp_path / "saved")
    report = encode(tmp_path / "saved", tmp_path / "parts", encoder, shards=3, runner=elsewhere)
    assert report.images == 24
    read = RetrievalClassifier.from_vectors("memory", tmp_path / "parts", encoder=encoder, k=3)
    images = RetrievalClassifier(encoder, "memory", k=3).fit(tmp_path / "saved")
    assert answers(read, class_folder) == answers(images, class_folder)
    assert answers(read, class_folder)[:2] == answers(fitted, class_folder)[:2]
    assert read.classes_.tolist() == [0, 1]
    assert encode(tmp_path / "saved", tmp_path / "parts", encoder).new == 0
    (tmp_path / "saved" / "cache-0.arrow").touch()  # as map() leaves behind
    assert encode(tmp_path / "saved", tmp_path / "parts", encoder).new == 0
    copied = shutil.copytree(class_folder / "test", tmp_path / "copied")
    paths = scan_folder(copied).paths
    datasets.Dataset.from_dict({"path": list(map(str, paths))}).save_to_disk(tmp_path / "paths")
    assert encode(tmp_path / "paths", tmp_path / "of-paths", encoder).new == len(paths)
    assert encode(tmp_path / "paths", tmp_path / "of-paths", encoder).new == 0
    os.utime(paths[0], ns=(1, 1))
    with pytest.raises(InvalidInputError, match="images or labels have changed"):
        encode(tmp_path / "paths", tmp_path / "of-paths", encoder)
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "splits")
    with pytest.raises(InvalidInputError, match=r"splits' holds several splits of a dataset"):
        encode(tmp_path / "splits", tmp_path / "none", encoder)
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(InvalidInputError, match=r"the dataset in '.*saved' cannot be read"):
        encode(tmp_path / "saved", tmp_path / "none", encoder)
