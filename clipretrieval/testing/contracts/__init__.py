"""The parts of the conformance suite of vector stores, a class for each capability."""
