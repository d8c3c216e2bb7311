"""A store whose vectors are to go through another map, rewritten as a whole."""

from __future__ import annotations

from clipretrieval import errors
from clipretrieval._util.progress import Progress
from clipretrieval.encoding.base import Encoder
from clipretrieval.errors import UnsupportedOperationError
from clipretrieval.retrieval.changes import ChangeFollower, following
from clipretrieval.retrieval.exclusive import sole_writer
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.retrieval.rewriting import refit_transform
from clipretrieval.retrieval.transform_plan import STORED, TransformPlan
from clipretrieval.retrieval.vectorless_store import is_vectorless
from clipretrieval.stores.base import VectorStore
from clipretrieval.types import Metric

__all__ = ["rewrite_store"]


def rewrite_store(
    store: VectorStore,
    encoder: Encoder | None,
    metric: Metric,
    normalize: bool,
    plan: TransformPlan,
    statistics: ChangeFollower | None,
    progress: Progress,
) -> None:
    """Learn the map of a store's vectors anew, and rewrite them; see `RetrievalClassifier.refit_transform`.

    Raises
    ------
    NotFittedError
        If no classifier has filled the store.
    UnsupportedOperationError
        If it keeps no vectors.
    """
    if not store.read_manifest():
        raise errors.NotFittedError(
            f"no classifier has filled this {type(store).__name__}, so there is nothing to rewrite; fit one "
            "on it first"
        )
    if is_vectorless(store):
        raise UnsupportedOperationError(
            "the store keeps no vectors (keep_vectors=False), so there is nothing to rewrite"
        )
    with sole_writer(store), following(store, statistics):
        index = LabelledIndex.open(store, encoder, metric, normalize, plan=STORED, finished=False)
        refit_transform(store, index.manifest(), plan, statistics, progress)
