"""What is said of a tower that is not supported."""

from __future__ import annotations

__all__ = ["OWN_ENCODER"]

OWN_ENCODER = """Bring it as an encoder of your own, a function from images to vectors:

    import numpy as np
    from clipretrieval import FunctionEncoder, RetrievalClassifier

    def vectors(images):  # a list of PIL images
        return np.stack([my_model(image) for image in images])  # (n, dim)

    encoder = FunctionEncoder(vectors, name="my-model", version="1")
    classifier = RetrievalClassifier(encoder).fit("pictures/train")
"""
