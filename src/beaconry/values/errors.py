"""The error tree, by whose fault: the caller's, the engine's, the operator's or ours. Each says what happened and what to do."""


class BeaconryError(Exception):
    """Root of all errors raised on purpose."""


class CallerError(BeaconryError):
    """The HTTP client sent something wrong.

    Rendered as an OpenAI error object: `status` is the HTTP status, `param` names the place in the body, `code` is machine readable.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
        self.kind = kind


class OperatorError(BeaconryError):
    """A file, flag or environment is wrong; the message names the place and the remedy."""


class EngineError(BeaconryError):
    """An engine broke its protocol."""


class InternalError(BeaconryError):
    """An invariant of ours does not hold: a bug."""
