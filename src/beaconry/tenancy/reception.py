"""Receives a request by its headers: who sends it, which model that means, and on what terms.

Where nothing is configured, everybody is the same caller and every name stands for itself.
"""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from beaconry.config.tenants import ModelConfig, Objective, TenantsFile, TrustedHeader
from beaconry.tenancy.keys import KeyRing
from beaconry.tenancy.rewrites import Rewrites
from beaconry.tenancy.terms import Caller, Header, Terms, caller_of, terms_of
from beaconry.values.errors import CallerError

_SCHEME = b"bearer"


class ReceptionStatistics(Struct, frozen=True, kw_only=True):
    """Requests that were refused for want of a key."""

    missing_keys: int
    """Without one, or with one that could not be read."""
    unknown_keys: int


class Reception:
    """Answers about one request at a time. All that it knows may be exchanged between two of them."""

    def __init__(self) -> None:
        self.rewrites = Rewrites({})
        self._objectives: Mapping[str, Objective] = {}
        self._defaults: Mapping[str, Objective] = {}
        """By the name that clients use; of the models that have any."""
        self._anybody = Caller()
        """Everybody, while there are no keys."""
        self._keys: KeyRing[Caller] | None = None
        """None while nobody is asked for one."""
        self._tenants = TenantsFile()
        self._source = ""
        """Where the tenants come from, for messages."""
        self._missing = 0
        self._unknown = 0

    def configure(
        self, models: Mapping[str, ModelConfig], objectives: Mapping[str, Objective], trusted: Sequence[TrustedHeader]
    ) -> None:
        """Take over names, objectives, and what everybody is trusted with."""
        self.rewrites = Rewrites(models)
        self._objectives = objectives
        self._defaults = {name: model.defaults for name, model in models.items() if model.defaults != Objective()}
        self._anybody = Caller(trusted=frozenset(trusted))
        if self._keys is not None:
            self.take_keys(self._tenants, self._source)

    @property
    def asks_for_keys(self) -> bool:
        """Whether a request without a key is refused; then its Authorization header is ours, and no engine's."""
        return self._keys is not None

    def take_keys(self, file: TenantsFile, source: str) -> None:
        """From now on ask for keys, and know these. Raises OperatorError, changing nothing, for a key that stands twice."""
        trusted = self._anybody.trusted
        callers = {name: caller_of(name, tenant, trusted) for name, tenant in file.tenants.items()}
        self._keys = KeyRing({name: tenant.keys for name, tenant in file.tenants.items()}, callers, source)
        self._tenants, self._source = file, source

    def caller(self, headers: Sequence[Header]) -> Caller:
        """Who sends this. Raises CallerError for no key, or a wrong one."""
        if self._keys is None:
            return self._anybody
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if scheme.lower() != _SCHEME or not key.strip():
            self._missing += 1
            raise CallerError(
                "no API key was given: send it once, in a header `Authorization: Bearer YOUR_KEY`",
                status=401,
                code="missing_api_key",
            )
        caller = self._keys.owner(key.strip())
        if caller is None:
            self._unknown += 1
            raise CallerError("the API key is not known here, or not any more", status=401, code="invalid_api_key")
        return caller

    def statistics(self) -> ReceptionStatistics:
        """What has been counted so far."""
        return ReceptionStatistics(missing_keys=self._missing, unknown_keys=self._unknown)

    def terms(self, caller: Caller, headers: Iterable[Header], model: str) -> Terms:
        """The terms of a request for `model`, as the client calls it. Raises CallerError as `terms_of`."""
        if not caller.trusted and model not in self._defaults:
            return caller.terms
        return terms_of(caller, headers, self._defaults.get(model), self._objectives)
