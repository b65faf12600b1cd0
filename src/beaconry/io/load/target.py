"""The server under load: its address, and which model it serves."""

import urllib.error
import urllib.request
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from beaconry.values.errors import OperatorError

MODELS_TIMEOUT_S = 10.0
MODELS_LIMIT_BYTES = 4 * 1024 * 1024


class Target(Struct, frozen=True, kw_only=True):
    """An OpenAI-compatible server. `path` is what stands before `/v1`."""

    host: str
    port: int
    model: str = ""
    secure: bool = False
    path: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with every request: authorization and the like."""

    @property
    def authority(self) -> str:
        """`host:port` as it stands in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The address, without `/v1`."""
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.path}"


class _Model(Struct, frozen=True):
    id: str


class _Models(Struct, frozen=True):
    data: list[_Model]


def parse_target(url: str, model: str = "", headers: tuple[tuple[str, str], ...] = ()) -> Target:
    """The target of a base URL, with or without `/v1`. Raises OperatorError if it is not an http or https URL."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:
        raise OperatorError(f"--url {url}: {error}; give something like http://127.0.0.1:8080") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise OperatorError(f"--url {url}: not an http or https address; give something like http://127.0.0.1:8080")
    secure = parts.scheme == "https"
    return Target(
        host=parts.hostname,
        port=port or (443 if secure else 80),
        model=model,
        secure=secure,
        path=parts.path.rstrip("/").removesuffix("/v1"),
        headers=headers,
    )


def first_model(target: Target) -> str:
    """The first model the server lists. Blocks for at most `MODELS_TIMEOUT_S`. Raises OperatorError if it cannot be had."""
    address = f"{target.url}/v1/models"
    request = urllib.request.Request(address, headers=dict(target.headers))  # noqa: S310 (parse_target admits http and https only)
    direct = urllib.request.build_opener(
        urllib.request.ProxyHandler({})
    )  # a proxy of the environment would be measured too
    try:
        with direct.open(request, timeout=MODELS_TIMEOUT_S) as answer:
            models = msgspec.json.decode(answer.read(MODELS_LIMIT_BYTES), type=_Models).data
    except (OSError, urllib.error.URLError, msgspec.MsgspecError) as error:
        raise OperatorError(
            f"{address}: cannot list the models ({error}); is the server up? else give --model"
        ) from error
    if not models:
        raise OperatorError(f"{address}: the server lists no model; give --model")
    return models[0].id
