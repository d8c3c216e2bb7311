"""Everything that is stored, written into one Parquet file, and read again."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet as pq

from clipretrieval import RetrievalClassifier, StoreUnavailableError, UnsupportedOperationError
from clipretrieval.heads import Whitening
from clipretrieval.stores import FaissStore, MemoryStore


def test_the_file_has_what_is_stored_and_what_made_it(fitted, tmp_path):
    """Ids, labels, paths and float32 vectors, and the encoder's fingerprint, without this library."""
    assert fitted.export(tmp_path / "out.parquet") == 24
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert list(frame.columns) == ["id", "label", "source", "metadata", "vector"]
    records = fitted.store_.get(frame["id"].tolist())
    assert records.labels.tolist() == frame["label"].tolist()
    assert np.stack(frame["vector"]).tobytes() == records.vectors.tobytes()
    assert [each["source"] for each in records.metadata] == frame["source"].tolist()
    assert frame["metadata"].isna().all()
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert str(schema.field("vector").type).startswith("fixed_size_list<element: float not null>[12]")
    kept = json.loads(schema.metadata[b"clipretrieval"])
    assert (kept["encoder"], kept["dim"], kept["normalize"]) == (fitted.encoder.fingerprint, 12, False)


@pytest.mark.parametrize("labels", [["a", "ü b"], [3, -1], [True, False], [0.0, 2.0]], ids=str)
@pytest.mark.parametrize("head", ["votes", "discriminant"])
def test_what_was_exported_answers_as_before(clouds, tmp_path, labels, head):
    """Labels of each type, and probabilities, come back as they were, into another store."""
    vectors, _, asked = clouds
    before = RetrievalClassifier(store="memory", head=head, k=3).fit(vectors, labels * 90)
    before.export(tmp_path / "out.parquet")
    after = RetrievalClassifier.from_vectors("faiss", tmp_path / "out.parquet", head=head, k=3)
    assert after.classes_.dtype == before.classes_.dtype
    assert after.predict(asked).tolist() == before.predict(asked).tolist()
    np.testing.assert_allclose(after.predict_proba(asked), before.predict_proba(asked), atol=1e-12)


def test_vectors_are_exported_as_they_were_before_a_transform(clouds, tmp_path):
    """To float32 precision; where dimensions were cut they are not there any more."""
    vectors, labels, _ = clouds
    whitened = RetrievalClassifier(store="memory", transform="whiten").fit_vectors(
        vectors, labels, range(180)
    )
    whitened.export(tmp_path / "out.parquet")
    frame = pd.read_parquet(tmp_path / "out.parquet")
    found = np.stack(frame["vector"])[np.argsort(frame["id"].astype(int))]
    np.testing.assert_allclose(found, vectors, atol=1e-5)
    assert frame["metadata"].isna().all()
    cut = RetrievalClassifier(store="memory", transform=Whitening(dim=2)).fit(vectors, labels)
    with pytest.raises(UnsupportedOperationError, match="2 of 8 dimensions"):
        cut.export(tmp_path / "cut.parquet")
    assert not (tmp_path / "cut.parquet").exists()


def test_other_metadata_comes_back(clouds, tmp_path):
    """What a store's owner has kept beside each vector is in the file, and in the store that reads it."""
    vectors, labels, _ = clouds
    store, names = MemoryStore(), [str(number) for number in range(180)]
    kept = [{"source": f"{name}.png", "camera": [name, None]} if name != "7" else {} for name in names]
    store.upsert(names, vectors, labels.tolist(), kept)
    RetrievalClassifier.adopt_store(store).export(tmp_path / "out.parquet")
    read = RetrievalClassifier.from_vectors("memory", tmp_path / "out.parquet")
    assert read.store_.get(names).metadata == kept


def test_a_scaled_index_stays_as_it_was_scaled(clouds, tmp_path):
    """Vectors of length one are not scaled again, which would move their last digits."""
    vectors, labels, _ = clouds
    before = RetrievalClassifier(store="memory", normalize=True).fit_vectors(vectors, labels, range(180))
    before.export(tmp_path / "out.parquet")
    after = RetrievalClassifier.from_vectors("memory", tmp_path / "out.parquet", normalize=True)
    names = [str(number) for number in range(180)]
    assert after.store_.get(names).vectors.tobytes() == before.store_.get(names).vectors.tobytes()


def test_a_file_that_cannot_be_written_leaves_what_was_there(fitted, tmp_path, monkeypatch):
    """The old file stays whole where the new one fails, and no other is left beside it."""
    (tmp_path / "out.parquet").write_text("old")
    with pytest.raises(StoreUnavailableError, match=r"missing/out.parquet' cannot be written"):
        fitted.export(tmp_path / "missing" / "out.parquet")
    monkeypatch.setattr(fitted.store_, "get", lambda ids: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        fitted.export(tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    assert (tmp_path / "out.parquet").read_text() == "old"


def test_pyarrow_is_asked_for_by_its_extra(fitted, tmp_path, monkeypatch):
    """Where it is missing, the message says what to install."""
    import sys

    from clipretrieval import MissingDependencyError

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"clipretrieval\[parquet\]"):
        fitted.export(tmp_path / "out.parquet")


def test_a_large_row_group_is_read_a_block_at_a_time(tmp_path):
    """Of 40 MB in one row group, hardly more than a block is in memory."""
    import pyarrow as pa

    from clipretrieval.vectors.arrow_content import open_arrow_file
    from clipretrieval.vectors.arrow_reader import ArrowReader
    from clipretrieval.vectors.column_names import ColumnNames

    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(20_000 * 512, dtype=np.float32)), 512)
    pq.write_table(
        pa.table({"vector": rows}), tmp_path / "v.parquet", use_dictionary=False, compression="none"
    )
    del rows
    reader = ArrowReader(open_arrow_file(tmp_path / "v.parquet"), ColumnNames())
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() - before for _ in reader.blocks())
    assert most < 16 * 2**20


def test_faiss_in_a_folder_is_exported_too(clouds, tmp_path):
    """By a process that only reads it."""
    vectors, labels, _ = clouds
    with FaissStore(tmp_path / "store") as store:
        RetrievalClassifier(store=store).fit(vectors, labels)
    with FaissStore(tmp_path / "store") as store:
        assert RetrievalClassifier.from_store(store).export(tmp_path / "out.parquet") == 180


def test_what_another_program_keeps_of_a_record_is_exported(tmp_path):
    """A source that is no path stays in the metadata; what is no Unicode is written as escapes."""
    store = MemoryStore()
    store.upsert(["x", "y"], np.eye(2), ["a", "b"], [{"source": 5}, {"source": "\udce4.png"}])
    assert RetrievalClassifier.adopt_store(store).export(tmp_path / "v.parquet") == 2
    found = pq.read_table(tmp_path / "v.parquet").to_pydict()
    assert found["source"] == [None, "\\udce4.png"]
    assert found["metadata"] == ['{"source": 5}', None]
