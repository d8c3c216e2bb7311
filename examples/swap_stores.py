"""Ask three stores the same questions: FAISS, Chroma, and Pinecone, here at an emulator of the service.

Run as ``python examples/swap_stores.py TRAIN TEST``, two folders with a sub-folder of pictures for each
class. It needs ``pip install "clipretrieval[chroma,pinecone]"``, but no account and no network.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clipretrieval import ClipRetrievalError, RetrievalClassifier, StagedEncoder
from clipretrieval.stores import ChromaStore, FaissStore, PineconeStore, VectorStore
from clipretrieval.testing import PineconeEmulator


@contextmanager
def three_stores() -> Iterator[list[VectorStore]]:
    """Open the stores, and close them in the end. Nothing but these lines knows which stores there are."""
    with (
        PineconeEmulator(api_key="any") as service,  # not for the service itself: it needs `api_key` alone
        FaissStore() as faiss,  # FaissStore("folder") keeps the vectors there, and so does ChromaStore
        ChromaStore() as chroma,
        PineconeStore("examples", host=service.host, api_key="any") as pinecone,
    ):
        yield [faiss, chroma, pinecone]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Classify a folder with three vector stores.")
    parser.add_argument("train", type=Path, help="folder with a sub-folder of images for each class")
    parser.add_argument("test", type=Path, help="another such folder, to classify")
    parser.add_argument("--k", type=int, default=3, help="neighbors that vote (3)")
    options = parser.parse_args(arguments)
    encoder = StagedEncoder(stage="pixel")
    try:
        with three_stores() as stores:
            for store in stores:
                classifier = RetrievalClassifier(encoder, store, k=options.k).fit(options.train)
                report = classifier.evaluate(options.test)
                print(f"{type(store).__name__:14} {report.accuracy:.1%} of {report.n_test} images")
    except ClipRetrievalError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
