"""What the emulated service answers: results, and refusals in the shapes of its two planes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Answer", "Refused", "json_answer", "over_quota", "refusal", "text_answer"]

# HTTP status: the gRPC code that the data plane reports, and the name that the control plane does.
CODES = {
    400: (3, "INVALID_ARGUMENT"),
    403: (7, "FORBIDDEN"),
    404: (5, "NOT_FOUND"),
    405: (12, "UNIMPLEMENTED"),
    409: (6, "ALREADY_EXISTS"),
    413: (11, "OUT_OF_RANGE"),
    415: (3, "INVALID_ARGUMENT"),
    422: (3, "UNPROCESSABLE_ENTITY"),
    501: (12, "UNIMPLEMENTED"),
    503: (14, "UNAVAILABLE"),
}


@dataclass(frozen=True)
class Answer:
    """One HTTP response.

    Attributes
    ----------
    status : int
    body : bytes
    headers : mapping of str to str
        Without Content-Length.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):  # noqa: N818 - a refusal, answered to the client, never raised to the user
    """The service would refuse the request.

    Attributes
    ----------
    status : int
    message : str
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def json_answer(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Answer:
    """Return a response that carries JSON."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    return Answer(status, body, {"Content-Type": "application/json", **(headers or {})})


def refusal(plane: str, status: int, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Return an error in the shape of a plane: ``ErrorResponse`` (control) or ``rpcStatus`` (data)."""
    number, name = CODES[status]
    if plane == "control":
        return json_answer(status, {"status": status, "error": {"code": name, "message": message}}, headers)
    return json_answer(status, {"code": number, "message": message, "details": []}, headers)


def over_quota(plane: str) -> Answer:
    """Return the answer to what a project's quota or plan does not allow."""
    if plane == "control":
        return refusal(plane, 403, "Increase your quota or upgrade to create more indexes.")
    return text_answer(403, "Request failed. The limit of your plan is reached; upgrade to continue.")


def text_answer(status: int, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Return an error of the layer before both planes, for keys and rates, which answers in plain text."""
    return Answer(status, message.encode(), {"Content-Type": "text/plain; charset=utf-8", **(headers or {})})
