"""Vectors that exist already, brought in from memory and from files of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from own_encoder import Quarters
from pyarrow import feather, ipc
from pyarrow import parquet as pq

from clipretrieval import (
    ClipRetrievalWarning,
    DimensionMismatchError,
    FingerprintMismatchError,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
)

NAMES = [f"n{number}" for number in range(180)]


def contents(store):
    ids = sorted(name for listing in store.scan() for name in listing.ids.tolist())
    records = store.get(ids)
    return ids, records.vectors.tolist(), records.labels.tolist(), records.metadata


def table(vectors, labels, **more):
    listed = pa.array(list(vectors), type=pa.list_(pa.float32()))
    return pa.table({"id": NAMES[: len(vectors)], "label": labels, "vector": listed, **more})


@pytest.fixture
def wanted(clouds):
    """What the same vectors from memory fill a store with."""
    vectors, labels, _ = clouds
    return contents(RetrievalClassifier(store="memory").fit_vectors(vectors, labels, NAMES).store_)


def test_an_array_with_ids_is_stored_under_them_and_answers_as_a_fit(clouds):
    """Ids are the caller's, ints become str, and answers are those of the vectors fitted without ids."""
    vectors, labels, asked = clouds
    plain = RetrievalClassifier(store="memory", k=5).fit(vectors, labels)
    named = RetrievalClassifier(store="memory", k=5).fit_vectors(vectors, labels, range(180))
    assert named.predict(asked).tolist() == plain.predict(asked).tolist()
    assert set(contents(named.store_)[0]) == {str(number) for number in range(180)}
    assert named.fit_report_.new == 180
    unnamed = RetrievalClassifier(store="memory", k=5).fit_vectors(vectors, labels)
    assert contents(unnamed.store_) == contents(plain.store_)


def test_more_vectors_are_added_and_resumed_as_images_are(clouds):
    """Vectors may come in any number of calls; what is there is left as it is, but for its label."""
    vectors, labels, _ = clouds
    whole = RetrievalClassifier(store="memory").fit_vectors(vectors, labels, NAMES)
    parts = RetrievalClassifier(store="memory").fit_vectors(vectors[:100], labels[:100], NAMES[:100])
    parts.partial_fit_vectors(vectors[80:], labels[80:], NAMES[80:])
    assert (parts.fit_report_.new, parts.fit_report_.already_there) == (80, 20)
    assert contents(parts.store_) == contents(whole.store_)
    with pytest.raises(InvalidInputError, match="resume=True"):
        RetrievalClassifier(store=parts.store_).fit_vectors(vectors, labels)
    again = RetrievalClassifier(store=parts.store_).fit_vectors(vectors, labels[::-1], NAMES, resume=True)
    assert again.fit_report_.relabelled == 120
    with pytest.raises(DimensionMismatchError, match="3 features"):
        parts.partial_fit_vectors(np.ones((2, 3)), ["a", "b"])


@pytest.mark.parametrize(
    "write",
    [
        lambda rows, path: pq.write_table(rows, path / "v.parquet", row_group_size=50),
        lambda rows, path: feather.write_feather(rows, str(path / "v.feather")),
        lambda rows, path: np.savez(
            path / "v.npz", ids=NAMES, labels=rows["label"].to_pylist(), vectors=_array(rows)
        ),
        lambda rows, path: np.savez_compressed(
            path / "v.npz", ids=NAMES, label=rows["label"].to_pylist(), emb=np.asfortranarray(_array(rows))
        ),
        lambda rows, path: _write_stream(rows, path / "v.arrow"),
        lambda rows, path: _write_fixed(rows, path / "v.parquet"),
        lambda rows, path: _write_dataset(rows, path),
    ],
    ids=["parquet", "feather", "npz", "fortran", "stream", "fixed", "dataset"],
)
def test_each_kind_of_file_fills_the_same_store(clouds, wanted, tmp_path, write):
    """Ids, vectors, labels and answers are those of the vectors in memory."""
    vectors, labels, asked = clouds
    write(table(vectors, labels), tmp_path)
    found = list(tmp_path.iterdir())
    path = tmp_path if len(found) > 1 else found[0]
    made = RetrievalClassifier.from_vectors("memory", path)
    assert contents(made.store_) == wanted
    plain = RetrievalClassifier(store="memory").fit(vectors, labels)
    assert made.predict(asked).tolist() == plain.predict(asked).tolist()


def _array(rows):
    return np.array(rows["vector"].to_pylist(), dtype=np.float32)


def _write_stream(rows, path):
    with ipc.new_stream(path, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=70)


def _write_fixed(rows, path):
    fixed = rows["vector"].cast(pa.list_(pa.float32(), 8))
    coded = rows["label"].dictionary_encode()
    pq.write_table(pa.table({"id": rows["id"], "label": coded, "vector": fixed, "other": fixed}), path)


def _write_dataset(rows, path):
    """Write what Hugging Face's ``save_to_disk`` does: streams, and a file that lists them."""
    for number, part in enumerate((rows.slice(0, 90), rows.slice(90))):
        _write_stream(part, path / f"data-0000{number}-of-00002.arrow")
    files = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    (path / "state.json").write_text(json.dumps({"_data_files": files}))
    (path / "dataset_info.json").write_text("{}")


def test_a_dataset_of_hugging_face_is_read_from_memory_and_from_disk(clouds, tmp_path):
    """Its class labels stay the numbers that they are."""
    datasets = pytest.importorskip("datasets")
    vectors, labels, _ = clouds
    numbers = [{"a": 0, "b": 1, "ü": 2}[label] for label in labels]
    features = datasets.Features(
        {
            "emb": datasets.Sequence(datasets.Value("float32"), length=8),
            "label": datasets.ClassLabel(names=["a", "b", "ü"]),
        }
    )
    made = datasets.Dataset.from_dict({"emb": list(vectors), "label": numbers}, features=features)
    made.shuffle(seed=0).save_to_disk(tmp_path / "saved")
    wanted = RetrievalClassifier(store="memory").fit(vectors, numbers)
    for source in (made, made.shuffle(seed=1), tmp_path / "saved"):
        read = RetrievalClassifier(store="memory").fit_vectors(source)
        assert contents(read.store_) == contents(wanted.store_)
        assert read._class_names == {0: "a", 1: "b", 2: "ü"}
    unlabelled = datasets.Dataset.from_dict({"emb": vectors[:2], "label": [1, -1]}, features=features)
    with pytest.raises(InvalidInputError, match="row 1 of the Dataset has no label"):
        RetrievalClassifier(store="memory").fit_vectors(unlabelled)
    with pytest.raises(InvalidInputError, match=r"DatasetDict .*one split"):
        RetrievalClassifier(store="memory").fit_vectors(datasets.DatasetDict({"train": made}))
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "splits")
    with pytest.raises(InvalidInputError, match=r"several splits .*'train', 'test'"):
        RetrievalClassifier(store="memory").fit_vectors(tmp_path / "splits")


def write_clip_retrieval(folder, vectors, metadata, parts=2):
    """Write the folders that clip-retrieval does, in so many parts."""
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(vectors)), parts)):
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", vectors[rows])
        metadata.iloc[rows].reset_index(drop=True).to_parquet(
            folder / "metadata" / f"metadata_{number}.parquet"
        )


def test_the_folders_of_clip_retrieval_answer_as_the_files_do(class_folder, tmp_path):
    """Scaled float16 vectors of the same encoder, their classes taken from the images' folders."""
    encoder = StagedEncoder(stage="pixel")
    plain = RetrievalClassifier(encoder, "memory", normalize=True).fit(class_folder / "train")
    paths = sorted(map(str, (class_folder / "train").rglob("*.*")))
    rows = encoder.encode(paths)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    write_clip_retrieval(tmp_path / "out", rows, pd.DataFrame({"image_path": paths, "caption": ["x"] * 24}))
    made = RetrievalClassifier.from_vectors("memory", tmp_path / "out", encoder=encoder, normalize=True)
    asked = class_folder / "test"
    assert made.predict(asked).tolist() == plain.predict(asked).tolist()
    assert sorted(each["source"] for each in contents(made.store_)[3]) == paths
    with pytest.warns(ClipRetrievalWarning, match="normalize=True"):
        RetrievalClassifier.from_vectors("memory", tmp_path / "out", encoder=encoder)
    (tmp_path / "out" / "metadata" / "metadata_1.parquet").unlink()
    with pytest.raises(InvalidInputError, match=r"img_emb_1.npy' has no .*metadata_1.parquet"):
        RetrievalClassifier.from_vectors("memory", tmp_path / "out", encoder=encoder)


def test_a_column_of_clip_retrievals_metadata_is_the_label(clouds, tmp_path):
    """Also with more parts than ten, which are read in the order of their numbers."""
    vectors, labels, _ = clouds
    described = pd.DataFrame({"image_path": NAMES, "kind": labels})
    write_clip_retrieval(tmp_path / "out", vectors, described, parts=12)
    made = RetrievalClassifier.from_vectors("memory", tmp_path / "out", labels="kind", ids="image_path")
    _, _, found, metadata = contents(made.store_)
    assert [each["source"] for each in metadata] == sorted(NAMES)
    assert found == [labels[NAMES.index(name)] for name in sorted(NAMES)]


def test_vectors_of_files_take_labels_and_ids_from_the_call(clouds, wanted, tmp_path):
    """An .npy has neither; a count that does not fit is refused."""
    vectors, labels, _ = clouds
    np.save(tmp_path / "v.npy", vectors.astype(np.float64))
    made = RetrievalClassifier(store="memory").fit_vectors(tmp_path / "v.npy", labels, NAMES)
    assert contents(made.store_) == wanted
    with pytest.raises(InvalidInputError, match="180 vectors and 179 labels"):
        RetrievalClassifier(store="memory").fit_vectors(tmp_path / "v.npy", labels[1:])
    with pytest.raises(InvalidInputError, match="180 vectors and 2 ids"):
        RetrievalClassifier(store="memory").fit_vectors(tmp_path / "v.npy", labels, ["x", "y"])
    with pytest.raises(InvalidInputError, match="has no labels; pass labels"):
        RetrievalClassifier(store="memory").fit_vectors(tmp_path / "v.npy")


def test_images_are_asked_for_with_the_encoder_of_the_vectors(encoder, class_folder, fitted):
    """A classifier without an encoder gets the one that is given; another than its own is refused."""
    paths = sorted(map(str, (class_folder / "train").rglob("*.*")))
    labels = [path.split("/")[-2] for path in paths]
    rows = encoder.encode(list(_images(paths)))
    made = RetrievalClassifier(store="memory", k=3).fit_vectors(rows, labels, encoder=encoder)
    assert made.encoder is encoder
    asked = class_folder / "test"
    assert made.predict(asked).tolist() == fitted.predict(asked).tolist()
    other = RetrievalClassifier(encoder, "memory")
    with pytest.raises(FingerprintMismatchError, match="scale"):
        other.fit_vectors(rows, labels, encoder=Quarters(2.0))
    with pytest.raises(DimensionMismatchError, match="8 dimensions, and the encoder's have 12"):
        other.fit_vectors(rows[:, :8], labels)
    assert not hasattr(other, "store_")


def _images(paths):
    from PIL import Image

    for path in paths:
        with Image.open(path) as image:
            yield image.convert("RGB")


def test_a_file_that_states_its_encoder_is_compared(encoder, fitted, tmp_path):
    """Another encoder, none, and files of two encoders are refused; the message names file and difference."""
    fitted.export(tmp_path / "a.parquet")
    other = Quarters(2.0)
    RetrievalClassifier(other, "memory").fit_vectors(np.eye(12), [*"ab" * 6]).export(tmp_path / "b.parquet")
    with pytest.raises(
        FingerprintMismatchError, match=r"a.parquet' were made .*scale: the file has 1.0, the"
    ):
        RetrievalClassifier.from_vectors("memory", tmp_path / "a.parquet", encoder=other)
    with pytest.raises(FingerprintMismatchError, match=r"a.parquet' and .*b.parquet' were made by different"):
        RetrievalClassifier.from_vectors("memory", tmp_path / "*.parquet", encoder=encoder)
    with pytest.raises(InvalidInputError, match=r"encoder='quarters'.*pass the same"):
        RetrievalClassifier.from_vectors("memory", tmp_path / "a.parquet")
    scaled = RetrievalClassifier(encoder, "memory", normalize=True).fit_vectors(np.eye(12), [*"ab" * 6])
    scaled.export(tmp_path / "c.parquet")
    for metric in ("l2", "cosine"):  # whose own export would say that they are raw
        with pytest.raises(FingerprintMismatchError, match="normalize=True"):
            RetrievalClassifier.from_vectors("memory", tmp_path / "c.parquet", encoder=encoder, metric=metric)


BAD = {
    "no vectors": (lambda rows: rows.drop_columns("vector"), {}, r"no column of vectors; .* 'id', 'label'"),
    "two": (
        lambda rows: rows.append_column("emb2", rows["vector"]).rename_columns(["id", "label", "e", "f"]),
        {},
        r"several columns .* 'e', 'f'",
    ),
    "wrong name": (lambda rows: rows, {"column": "emb"}, r"no column 'emb' .* 'id', 'label', 'vector'"),
    "wrong label": (lambda rows: rows, {"labels": "kind"}, r"no column 'kind' for the labels; .* 'label'"),
    "wrong id": (lambda rows: rows, {"ids": "name"}, r"no column 'name' for the ids"),
    "text": (lambda rows: rows, {"column": "label"}, r"'label' .* type string; vectors are lists"),
    "no labels": (lambda rows: rows.drop_columns("label"), {}, "has no labels; pass labels"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_without_the_columns_is_refused_with_those_that_it_has(clouds, tmp_path, name):
    """Before anything is stored."""
    vectors, labels, _ = clouds
    change, options, message = BAD[name]
    pq.write_table(change(table(vectors, labels)), tmp_path / "v.parquet")
    classifier = RetrievalClassifier(store="memory")
    with pytest.raises(InvalidInputError, match=message):
        classifier.fit_vectors(tmp_path / "v.parquet", **options)
    assert not hasattr(classifier, "store_")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"vector": [[1.0, 2.0], [np.nan, 1.0]]}, "row 1 of .* has NaN or infinite values"),
        ({"vector": [[1.0, 2.0], [1e300, 1.0]]}, "row 1 of .* has NaN or infinite values"),
        ({"vector": [[1.0, 2.0], None]}, "row 1 of .* has no vector"),
        ({"vector": [[1.0, 2.0], [1.0]]}, "row 1 of .* has 1 dimensions, and the first row 2"),
        ({"label": ["a", None]}, "row 1 of .* has no label"),
        ({"id": ["a", None]}, "the id in row 1 of .* is None"),
        ({"id": ["a", ""]}, "the id in row 1 of .* is ''"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, message):
    """With its file; rows with a vector of no use can be skipped."""
    given = {"id": ["x", "y"], "label": ["a", "b"], "vector": [[1.0, 2.0], [3.0, 4.0]], **row}
    pq.write_table(pa.table(given), tmp_path / "v.parquet")
    with pytest.raises(InvalidInputError, match=message):
        RetrievalClassifier(store="memory").fit_vectors(tmp_path / "v.parquet")
    if "NaN" in message:
        skipping = RetrievalClassifier(store="memory")
        with pytest.warns(ClipRetrievalWarning, match="only one class"):
            skipping.fit_vectors(tmp_path / "v.parquet", on_error="skip")
        assert [image.index for image in skipping.skipped_] == [1]
        assert skipping.store_.count() == 1


def test_an_id_with_another_vector_is_refused_by_file_and_row(clouds, tmp_path):
    """In one file, in two, and against the store; the same vector, but for rounding, is the same image."""
    vectors = clouds[0]
    for name, rows in (("a", vectors[:10]), ("b", vectors[10:20]), ("c", vectors[:10].astype(np.float16))):
        pq.write_table(table(rows.astype(np.float32), ["a", "b"] * 5), tmp_path / f"{name}.parquet")
    twice = table(vectors[:10], ["a", "b"] * 5).set_column(0, "id", pa.array(["x", "y", *"xabcdefg"]))
    pq.write_table(twice, tmp_path / "twice.parquet")

    def refused(path, message, **options):
        with pytest.raises(InvalidInputError, match=message):
            RetrievalClassifier(store="memory", **options).fit_vectors(path)

    for options in ({}, {"metric": "cosine"}, {"normalize": True}, {"transform": "whiten"}):
        refused(tmp_path / "twice.parquet", "row 2 of .*twice.parquet' has the id 'x'", **options)
        refused([tmp_path / "a.parquet", tmp_path / "b.parquet"], r"row 0 of .*b.parquet' .*'n0'", **options)
        held = RetrievalClassifier(store="memory", **options).fit_vectors(tmp_path / "a.parquet")
        with pytest.raises(InvalidInputError, match=r"row 0 of .*b.parquet' has the id 'n0'"):
            held.partial_fit_vectors(tmp_path / "b.parquet")
        held.partial_fit_vectors(tmp_path / "c.parquet")
        assert held.fit_report_.already_there == 10


def test_columns_are_not_taken_for_what_they_are_not(clouds, tmp_path):
    """Boxes are no vectors unless they are named; a tensor is one; labels are of one type in all files."""
    vectors, labels, _ = clouds
    rows = table(vectors, labels)
    boxes = rows.drop_columns("vector").append_column("bbox", pa.array([[1, 2, 3, 4]] * 180))
    classifier = RetrievalClassifier(store="memory")
    with pytest.raises(InvalidInputError, match=r"no column of vectors; .*'bbox', of .*list<.*int64>"):
        classifier.fit_vectors(boxes)
    whole = boxes.append_column("found", rows["vector"])
    assert contents(RetrievalClassifier(store="memory").fit_vectors(whole).store_) == contents(
        RetrievalClassifier(store="memory").fit_vectors(rows).store_
    )
    named = RetrievalClassifier(store="memory").fit_vectors(boxes, column="bbox", ids=list(NAMES))
    assert named.n_features_in_ == 4
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(vectors)
    read = RetrievalClassifier(store="memory").fit_vectors(rows.set_column(2, "vector", tensor))
    assert contents(read.store_) == contents(RetrievalClassifier(store="memory").fit_vectors(rows).store_)
    pq.write_table(rows, tmp_path / "a.parquet")
    pq.write_table(table(vectors, np.arange(180)), tmp_path / "b.parquet")
    with pytest.raises(InvalidInputError, match=r"labels of .*a.parquet' are str, and .*b.parquet' int"):
        classifier.fit_vectors(tmp_path / "*.parquet")
    empty = pa.table({"vector": pa.array([[]] * 2, pa.list_(pa.float32())), "label": ["a", "b"]})
    with pytest.raises(InvalidInputError, match="no dimensions: its lists are empty"):
        classifier.fit_vectors(empty)
    with pytest.raises(InvalidInputError, match=r"DataFrame .*from_pandas"):
        classifier.fit_vectors(rows.to_pandas())


def test_files_that_are_none_are_refused_by_name(clouds, tmp_path):
    """What is missing, damaged, of another dimension, or no file of vectors."""
    vectors, labels, _ = clouds

    def refused(path, message, **options):
        with pytest.raises(InvalidInputError, match=message):
            RetrievalClassifier(store="memory").fit_vectors(path, **options)

    pq.write_table(table(vectors, labels), tmp_path / "v.parquet")
    content = (tmp_path / "v.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.parquet").write_text("hello")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.ones(3))
    np.save(tmp_path / "whole.npy", vectors)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-8])
    refused(tmp_path / "none.parquet", "no file or folder")
    refused(tmp_path / "*.feather", "no file matches")
    for url in ("s3://u:SECRET@b/*.parquet", Path("s3://u:SECRET@b/x.parquet")):
        refused(url, r"vectors is a URL \(s3://…\), and URLs are neither read nor written")
    refused(tmp_path / "cut.parquet", "cut.parquet' cannot be read as Parquet")
    refused(tmp_path / "text.parquet", "text.parquet' cannot be read")
    refused(tmp_path / "objects.npy", "Python objects")
    refused(tmp_path / "flat.npy", r"of the shape \(3,\)")
    refused(tmp_path / "cut.npy", "ends before its last row", labels=labels)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no Parquet")
    np.save(tmp_path / "other.npy", vectors[:, :4])
    refused(
        [tmp_path / "whole.npy", tmp_path / "other.npy"], "8 dimensions and .*other.npy' of 4", labels=labels
    )
    refused(vectors, "name of a column, and vectors have none", labels="label")
    refused(
        vectors, "ids must be unique; 'x' is that of the rows 0 and 2", labels=labels, ids=["x", "y", "x"]
    )


def test_what_came_before_a_bad_row_is_kept_and_gone_on_from(clouds, tmp_path):
    """As with images: the same call with resume=True stores the rest."""
    vectors, labels, _ = clouds
    pq.write_table(table(vectors[:90], labels[:90]), tmp_path / "a.parquet")
    rows = table(vectors[90:], labels[90:]).set_column(0, "id", pa.array(NAMES[90:]))
    broken = rows.set_column(1, "label", pa.array([None, *labels[91:]]))
    pq.write_table(broken, tmp_path / "b.parquet")
    classifier = RetrievalClassifier(store="memory")
    from clipretrieval.stores import MemoryStore

    store = MemoryStore()
    with pytest.raises(InvalidInputError, match=r"row 0 of .*b.parquet' has no label"):
        RetrievalClassifier(store=store).fit_vectors(tmp_path / "*.parquet")
    assert store.count() == 90
    pq.write_table(rows, tmp_path / "b.parquet")
    resumed = RetrievalClassifier(store=store).fit_vectors(tmp_path / "*.parquet", resume=True)
    assert (resumed.fit_report_.new, resumed.fit_report_.already_there) == (90, 90)
    classifier.fit_vectors(vectors, labels, NAMES)
    assert contents(store) == contents(classifier.store_)
