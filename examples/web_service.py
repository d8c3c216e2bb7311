"""Answer over HTTP: a picture is uploaded, its class comes back with the neighbors that voted for it.

Run as ``python examples/web_service.py FOLDER``, which `RetrievalClassifier.save` or ``clipretrieval index``
has written, after ``pip install fastapi python-multipart uvicorn``. Then ask it:
``curl -F picture=@cat.jpg http://127.0.0.1:8000/classify``.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response, UploadFile
from fastapi.responses import JSONResponse

from clipretrieval import ClipRetrievalError, ImageDecodeError, RetrievalClassifier
from clipretrieval.images import iter_images

LARGEST = 20 * 2**20
"""Bytes of a picture."""
MOST_PIXELS = 25_000_000
"""Pixels of a picture, which take up to 20 bytes of memory each while it is decoded."""
AT_ONCE = 4
"""Pictures that are decoded side by side; other callers wait."""
ENVELOPE = 10_000
"""Bytes of a request beside the picture."""


def create_app(
    classifier: RetrievalClassifier, largest: int = LARGEST, most_pixels: int = MOST_PIXELS
) -> FastAPI:
    """Make the service of a fitted classifier."""
    app = FastAPI(title="clipretrieval")
    turn = threading.BoundedSemaphore(AT_ONCE)

    @app.middleware("http")
    async def bound(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        """Refuse what is too large before it is received."""
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not length.isdecimal():
            return JSONResponse({"detail": "the header Content-Length is missing"}, 411)
        if length and int(length) > largest + ENVELOPE:
            return JSONResponse({"detail": f"a picture may have {largest} bytes at most"}, 413)
        return await answer(request)

    @app.post("/classify")
    def classify(picture: UploadFile, k: Annotated[int, Query(ge=1, le=100)] = 5) -> dict[str, Any]:
        """Classify a picture, and show its k nearest neighbors."""
        content = picture.file.read(largest + 1)  # a plain `def` runs in a thread: classifiers may be shared
        if len(content) > largest:
            raise HTTPException(413, f"a picture may have {largest} bytes at most")
        try:
            with turn:
                image = next(iter_images(content, max_pixels=most_pixels)).image
                found = classifier.explain([image], k)[0].to_dict()
        except ImageDecodeError as error:
            raise HTTPException(422, str(error)) from error
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
