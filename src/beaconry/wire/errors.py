"""OpenAI error objects: `{"error": {"message", "type", "param", "code"}}`, what every OpenAI client library understands."""

from http import HTTPStatus

import msgspec

from beaconry.values.errors import CallerError

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(
    message: str, *, status: int, code: str | None = None, param: str | None = None, kind: str | None = None
) -> bytes:
    """Render one error object; `kind` defaults by status: the caller's fault below 500, the server's from there on."""
    if kind is None:
        kind = _KINDS.get(status) or (
            "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
        )
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def caller_error_body(error: CallerError) -> bytes:
    """Render a CallerError."""
    return error_body(error.message, status=error.status, code=error.code, param=error.param, kind=error.kind)


def no_such_model(name: str) -> str:
    """What to say of a model that is not there, or not for this caller: the same, so that names cannot be fished for."""
    return f"The model `{name[:200]}` does not exist. GET /v1/models lists those that do."
