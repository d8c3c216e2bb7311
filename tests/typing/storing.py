"""Who may pass as a store or as an encoder; a line marked ``E:`` has to be refused with that code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import assert_type

from clipretrieval import LabelConflict, Metric, Neighbors, Records, RetrievalClassifier
from clipretrieval.encoding import Encoder
from clipretrieval.stores import (
    BlobStore,
    ChromaStore,
    ExclusiveStore,
    FaissStore,
    LanceStore,
    LocatedStore,
    MemoryStore,
    PgVectorStore,
    PineconeStore,
    PortableStore,
    RefreshableStore,
    ScannableStore,
    VectorStore,
    create_store,
)
from clipretrieval.types import AnyArray, FloatArray
from clipretrieval.vectors import merge_stores

memory: VectorStore = MemoryStore()
assert_type(merge_stores(memory, [memory], "last").conflicts, tuple[LabelConflict, ...])
merge_stores("faiss", [memory])  # E: arg-type
faiss: VectorStore = FaissStore("folder", index="auto")
chroma: VectorStore = ChromaStore(host="127.0.0.1", port=8000)
lance: VectorStore = LanceStore("folder", timeout=5)
pgvector: VectorStore = PgVectorStore("host=localhost", table="animals")
pinecone: VectorStore = PineconeStore("animals", namespace="cats")
scannable: list[ScannableStore] = [MemoryStore(), FaissStore(), ChromaStore(), PineconeStore("animals")]
keeping: list[BlobStore] = [MemoryStore(), FaissStore(), ChromaStore(), PineconeStore("animals")]
located: list[LocatedStore] = [FaissStore(), ChromaStore(), PineconeStore("animals")]
databases: list[ScannableStore | BlobStore | LocatedStore] = [LanceStore("folder"), PgVectorStore()]
portable: list[PortableStore] = [MemoryStore(), FaissStore()]
refreshable: RefreshableStore = FaissStore()
not_refreshable: RefreshableStore = MemoryStore()  # E: assignment
exclusive: ExclusiveStore = FaissStore()
not_exclusive: ExclusiveStore = ChromaStore()  # E: assignment
assert_type(create_store("memory"), VectorStore)
assert_type(MemoryStore().count(label="cat") + FaissStore().count(label=3) + ChromaStore().count("cat"), int)
PineconeStore()  # E: call-arg
PgVectorStore(5)  # E: arg-type
assert_type(PgVectorStore().build_index(), float)
FaissStore("folder", index=4)  # E: arg-type
MemoryStore().search([[0.0]], k="1")  # E: arg-type


class Whole:
    """A store of one's own, with nothing inherited."""

    metric: Metric = Metric.L2
    dim: int | None = None

    def upsert(
        self,
        ids: Sequence[str],
        vectors: FloatArray,
        labels: Any,
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None: ...
    def search(self, vectors: FloatArray, k: int) -> Neighbors: ...
    def get(self, ids: Sequence[str]) -> Records: ...
    def delete(self, ids: Sequence[str]) -> int: ...
    def count(self) -> int: ...
    def read_manifest(self) -> dict[str, Any]: ...
    def write_manifest(self, manifest: Mapping[str, Any]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class Lacking:
    """A store without a search."""

    metric: Metric = Metric.L2
    dim: int | None = None

    def count(self) -> int: ...


class OwnEncoder:
    """An encoder of one's own."""

    dim: int = 3
    fingerprint: dict[str, Any] = {}

    def encode(self, images: Any) -> FloatArray: ...


own: Encoder = OwnEncoder()
RetrievalClassifier(OwnEncoder(), Whole())
RetrievalClassifier(OwnEncoder(), Lacking())  # E: arg-type
RetrievalClassifier(Whole())  # E: arg-type
answers: AnyArray = RetrievalClassifier().predict([[0.0]])
