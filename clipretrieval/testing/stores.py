"""The conformance suite that a vector store passes, as a class for pytest to collect."""

from __future__ import annotations

from clipretrieval.testing.contracts.blobs import BlobContract
from clipretrieval.testing.contracts.machine import MachineContract
from clipretrieval.testing.contracts.persistence import LastingContract, ManifestContract
from clipretrieval.testing.contracts.records import RecordsContract, ValuesContract
from clipretrieval.testing.contracts.refusals import RefusalsContract
from clipretrieval.testing.contracts.scan import ScanContract
from clipretrieval.testing.contracts.search import PaddingContract, SearchContract
from clipretrieval.testing.contracts.threads import LargeContract, ThreadsContract

__all__ = ["VectorStoreTests"]


class VectorStoreTests(
    # pytest collects from the last base to the first: what is plain fails before what is intricate.
    MachineContract,
    ThreadsContract,
    LargeContract,
    ScanContract,
    BlobContract,
    LastingContract,
    ManifestContract,
    RefusalsContract,
    ValuesContract,
    PaddingContract,
    SearchContract,
    RecordsContract,
):
    """What every vector store has to do; inherit it in a test module and override `open_store`.

    The attributes declare what a store can do. Their defaults are the strictest: a store that cannot do
    something says so in its subclass, and the tests that are skipped for it name the attribute. What the
    optional protocols say, `LocatedStore`, `PortableStore`, `ScannableStore` and `BlobStore`, is asked of
    stores that have their methods.

    Attributes
    ----------
    metrics : tuple of {"l2", "cosine", "ip"}
        The metrics that the store knows.
    dim : int
        The dimension of all vectors of the suite, at least 4, for stores that have to know it beforehand.
    recall_floor : float
        The share of true neighbors that searches must find, in (0, 1]; 1.0 for an exact store.
    ties_by_id : bool
        Whether, of vectors that are equally far where a row of neighbors ends, those with the first ids
        are returned. Within a row, equal distances go by id in any case.
    tolerance : float
        The greatest error of a distance, relative to (‖q‖ + ‖x‖)² under l2, ‖q‖‖x‖ under ip, and 1 under
        cosine. The default is the rounding of float32 sums.
    exact_vectors : tuple of {"l2", "cosine", "ip"}
        The metrics under which `get` returns vectors bit for bit; under others, to within float32 rounding.
    persistent : bool
        Whether a store that was closed can be opened again with its contents.
    flushed_is_visible : bool
        Whether what was flushed can be read by another store while the first is open: one opened in the same
        folder or, where that raises StoreLockedError, in a copy of the folder. A store that is `persistent`
        and declares False keeps nothing before it is closed.
    thread_safe : bool
        Whether threads may search and write one store at the same time.
    unicode_ids : bool
        Whether ids may be any Unicode text, or only printable ASCII.
    json_metadata : bool
        Whether metadata may be nested and hold None, or only str, int, float and bool.
    machine_settings : mapping
        Arguments of ``hypothesis.settings`` for the state machine, say ``{"max_examples": 10}`` for a slow
        backend.

    Examples
    --------
    ::

        from clipretrieval.testing import VectorStoreTests

        class TestQdrantStore(VectorStoreTests):
            recall_floor = 0.95
            ties_by_id = False

            def open_store(self, metric, folder):
                return QdrantStore(url="http://localhost:6333", collection=folder.name, metric=metric)
    """
