"""Answer over HTTP: a picture is uploaded, its class comes back with the neighbours that voted for it.

Run as ``python examples/web_service.py FOLDER``, which `RetrievalClassifier.save` or ``clipretrieval index``
has written, after ``pip install fastapi python-multipart uvicorn``. Then ask it:
``curl -F picture=@cat.jpg http://127.0.0.1:8000/classify``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, UploadFile

from clipretrieval import ClipRetrievalError, ImageDecodeError, RetrievalClassifier

LARGEST = 20 * 2**20  # bytes of a picture


def create_app(classifier: RetrievalClassifier, largest: int = LARGEST) -> FastAPI:
    """Make the service of a fitted classifier."""
    app = FastAPI(title="clipretrieval")

    @app.post("/classify")
    def classify(picture: UploadFile, k: Annotated[int, Query(ge=1, le=100)] = 5) -> dict[str, Any]:
        """Classify a picture, and show its k nearest neighbours."""
        content = picture.file.read(largest + 1)  # a plain `def` runs in a thread: classifiers may be shared
        if len(content) > largest:
            raise HTTPException(413, f"a picture may have {largest} bytes at most")
        try:
            found = classifier.explain([content], k)[0].to_dict()
        except ImageDecodeError as error:
            raise HTTPException(415, str(error)) from error
        return {"label": found["answer"], "share": found["share"], "neighbors": found["neighbors"]}

    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    import uvicorn

    parser = argparse.ArgumentParser(description="Serve a saved classifier over HTTP.")
    parser.add_argument(
        "folder", type=Path, help="what RetrievalClassifier.save or `clipretrieval index` wrote"
    )
    parser.add_argument("--port", type=int, default=8000, help="port on this machine (8000)")
    options = parser.parse_args(arguments)
    try:
        classifier = RetrievalClassifier.load(options.folder)
    except ClipRetrievalError as error:
        parser.exit(2, f"error: {error}\n")
    uvicorn.run(create_app(classifier), host="127.0.0.1", port=options.port)


if __name__ == "__main__":
    main()
