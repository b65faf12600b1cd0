"""On what terms a request is served: whose it is, how urgent, and what is promised.

Headers say so where their sender is trusted with them, else the tenant's defaults, else the model's. A trusted header that cannot be
understood is an error: whoever is trusted relies on it.
"""

import difflib
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import TypeVar

from msgspec import Struct, structs

from beaconry.config.tenants import Objective, TenantConfig, TrustedHeader
from beaconry.values.errors import CallerError

T = TypeVar("T")
Header = tuple[bytes, bytes]
_HEADERS = {
    b"x-llm-d-inference-fairness-id": (TrustedHeader.FLOW, "flow"),
    b"x-gateway-inference-fairness-id": (TrustedHeader.FLOW, "flow"),
    b"x-llm-d-inference-objective": (TrustedHeader.OBJECTIVE, "objective"),
    b"x-gateway-inference-objective": (TrustedHeader.OBJECTIVE, "objective"),
    b"x-beaconry-program": (TrustedHeader.PROGRAM, "program"),
    b"x-llm-d-slo-ttft-ms": (TrustedHeader.SLO, "ttft"),
    b"x-slo-ttft-ms": (TrustedHeader.SLO, "ttft"),
    b"x-llm-d-slo-tpot-ms": (TrustedHeader.SLO, "itl"),
    b"x-slo-tpot-ms": (TrustedHeader.SLO, "itl"),
}
"""What trust each needs, and its subject: llm-d's names, new and old, and ours for what it has none for."""
NAME_LENGTH = 128
LEAST_MS = 1e-3
"""Of an objective: no engine is as fast, and times are divided by it."""
_NOTHING = Objective()


class Terms(Struct, frozen=True, kw_only=True):
    """The fields of a Request of the same names."""

    tenant: str = "default"
    account: str | None = None
    weight: float = 1.0
    priority: int = 0
    program: str | None = None
    ttl_s: float | None = None
    slo_ttft_s: float | None = None
    slo_itl_s: float | None = None


PLAIN = Terms()
"""Of a request of which nothing is known."""


class Caller(Struct, frozen=True, kw_only=True):
    """Who sends a request."""

    tenant: str | None = None
    """The configured tenant whose key it is; None where no keys are asked for."""
    weight: float = 1.0
    models: frozenset[str] | None = None
    """The names it may ask for; None is all."""
    defaults: Objective = _NOTHING
    trusted: frozenset[TrustedHeader] = frozenset()
    terms: Terms = PLAIN
    """Of its requests that say nothing, for a model that has no defaults."""

    def may_ask_for(self, model: str) -> bool:
        """Whether the model exists as far as this caller is concerned."""
        return self.models is None or model in self.models


def caller_of(name: str, tenant: TenantConfig, trusted: Iterable[TrustedHeader]) -> Caller:
    """The caller that a tenant's keys stand for; `trusted` is what everybody is trusted with."""
    caller = Caller(
        tenant=name,
        weight=tenant.weight,
        models=None if tenant.models is None else frozenset(tenant.models),
        defaults=tenant.defaults,
        trusted=frozenset((*trusted, *tenant.trusted_headers)),
    )
    return structs.replace(caller, terms=terms_of(caller, (), None, {}))


def terms_of(
    caller: Caller,
    headers: Iterable[Header],
    model_defaults: Objective | None,
    objectives: Mapping[str, Objective],
) -> Terms:
    """The terms of one request. Raises CallerError for a trusted header that cannot be understood."""
    said = _said(headers, caller.trusted) if caller.trusted else {}
    flow = _name(said, "flow")
    named = _name(said, "objective")
    order = (_objective(named, objectives), caller.defaults, model_defaults or _NOTHING)
    ttft_s, itl_s = _seconds(said, "ttft"), _seconds(said, "itl")
    return Terms(
        tenant=_within(caller, flow) or caller.tenant or "default",
        account=caller.tenant,
        weight=caller.weight,
        priority=_first(*(one.priority for one in order)) or 0,
        program=_within(caller, _name(said, "program")),
        ttl_s=_first(*(one.ttl_s for one in order)),
        slo_ttft_s=_first(ttft_s, *(one.slo_ttft_s for one in order)),
        slo_itl_s=_first(itl_s, *(one.slo_itl_s for one in order)),
    )


def _within(caller: Caller, name: str | None) -> str | None:
    """A name within its tenant, so that a name that others use too does not make it one of them."""
    return name if name is None or caller.tenant is None else f"{caller.tenant}/{name}"


def _said(headers: Iterable[Header], trusted: frozenset[TrustedHeader]) -> dict[str, Header]:
    """The first header on each subject, of those that are trusted."""
    said: dict[str, Header] = {}
    for header in headers:
        if header[0].startswith(b"x-"):
            trust, subject = _HEADERS.get(header[0], (None, ""))
            if trust in trusted:
                said.setdefault(subject, header)
    return said


def _objective(name: str | None, objectives: Mapping[str, Objective]) -> Objective:
    if name is None:
        return _NOTHING
    if name not in objectives:
        close = difflib.get_close_matches(name, objectives, n=1)
        meant = f' Did you mean "{close[0]}"?' if close else ""
        raise CallerError(f'there is no objective "{name}".{meant}', code="unknown_objective")
    return objectives[name]


def _name(said: Mapping[str, Header], subject: str) -> str | None:
    header, value = said.get(subject, (b"", b""))
    if not value:
        return None
    if len(value) > NAME_LENGTH or not value.isascii() or not value.decode().isprintable():
        raise CallerError(
            f"header {header.decode()} must be at most {NAME_LENGTH} printable ASCII characters", code="invalid_header"
        )
    return value.decode()


def _seconds(said: Mapping[str, Header], subject: str) -> float | None:
    header, value = said.get(subject, (b"", b""))
    if not value:
        return None
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = -1.0
    if not (isfinite(milliseconds) and milliseconds >= LEAST_MS):
        raise CallerError(
            f"header {header.decode()} must be a number of milliseconds, at least {LEAST_MS:g}", code="invalid_header"
        )
    return milliseconds / 1e3


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)
