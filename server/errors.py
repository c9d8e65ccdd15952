"""What a request can be told instead of an answer."""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """A request that cannot be honoured as it stands.

    Attributes:
        status: of HTTP.
        kind, code: as OpenAI names them.
        param: the field that is meant.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.kind = kind
        self.code = code
        self.headers = headers or {}

    def as_openai(self) -> dict[str, Any]:
        """The body of OpenAI's errors."""
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }
