"""What each tenant may still take, and what it has taken: requests, input tokens, output tokens, requests at once.

A request is let in if every limit of its tenant has room for it, and then charged to all of them, else to none: input by the estimate of
its prompt, output by the lesser of the caller's cap and what this tenant's requests have needed on average, so that many at once cannot
overshoot far. The engine's report replaces the estimates. Where there is none, the charge stands if the tenant got its answer or left it
unfinished, and is returned if the answer was never given: nobody pays for our or an engine's failure, and leaving early saves nothing.
"""

from collections.abc import Mapping
from math import floor

from msgspec import Struct

from beaconry.config.tenants import TenantLimits
from beaconry.tenancy.bucket import TokenBucket
from beaconry.values.errors import InternalError
from beaconry.values.outcome import Outcome
from beaconry.values.request import Request, Usage
from beaconry.values.tenant import Allowance, LimitKind, Refusal, TenantStatistics

FIRST_OUTPUT_TOKENS = 256.0
"""Expected of a request before any has ended: a paragraph or two."""
FIRST_DURATION_S = 1.0
_MEMORY = 1 / 16
"""Weight of the latest request in a tenant's averages."""
_CHARGED = frozenset({Outcome.COMPLETED, Outcome.STREAM_BROKEN, Outcome.CLIENT_GONE})
"""Ends after which a charge stands without a report, if a leg was started."""
_UNITS = {
    LimitKind.REQUESTS: "requests per second",
    LimitKind.INPUT_TOKENS: "input tokens per minute",
    LimitKind.OUTPUT_TOKENS: "output tokens per minute",
    LimitKind.CONCURRENCY: "requests at once",
}


class _Account:
    """One tenant's buckets and counters."""

    def __init__(self, name: str, limits: TenantLimits, now_s: float) -> None:
        self.name = name
        self.buckets: dict[LimitKind, TokenBucket] = {}
        """Of the limits it has; concurrency has none."""
        self.concurrency: int | None = None
        self.running = 0
        """Charges that are open: exactly those of the requests that have not ended."""
        self.output_mean = FIRST_OUTPUT_TOKENS
        """Output tokens per completion, lately."""
        self.duration_mean_s = FIRST_DURATION_S
        self.outcomes: dict[Outcome, int] = {}
        self.limited: dict[LimitKind, int] = {}
        self.input_tokens = 0
        self.output_tokens = 0
        self.limit(limits, now_s)

    def limit(self, limits: TenantLimits, now_s: float) -> None:
        """Take over limits: buckets that were there stay as full as they are."""
        self.concurrency = limits.concurrency
        for kind, (rate_per_s, capacity) in _sizes(limits).items():
            bucket = self.buckets.get(kind)
            if bucket is None:
                self.buckets[kind] = TokenBucket(rate_per_s, capacity, now_s)
            elif (bucket.rate_per_s, bucket.capacity) != (rate_per_s, capacity):
                bucket.resize(rate_per_s, capacity, now_s)
        for kind in self.buckets.keys() - _sizes(limits).keys():
            del self.buckets[kind]

    def take(self, kind: LimitKind, cost: float, now_s: float) -> None:
        """Charge one limit, if there is such a limit."""
        bucket = self.buckets.get(kind)
        if bucket is not None:
            bucket.take(cost, now_s)


class _Charge(Struct):
    """What a running request has been charged."""

    account: _Account
    input_tokens: float
    output_tokens: float
    sequences: int
    arrived_s: float
    settled: bool = False
    """The engine's report has replaced the estimates."""


class Allowances:
    """All tenants. Time must not run backwards between calls."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        """By tenant; those configured now."""
        self._charges: dict[str, _Charge] = {}
        """By request; of those that were let in and have not ended. Their tenant may be gone."""

    def configure(self, tenants: Mapping[str, TenantLimits], now_s: float) -> None:
        """Take over a new set of tenants; those that stay keep what they have taken."""
        kept = {}
        for name, limits in tenants.items():
            account = self._accounts.get(name)
            if account is None:
                account = _Account(name, limits, now_s)
            else:
                account.limit(limits, now_s)
            kept[name] = account
        self._accounts = kept

    def arrive(self, request: Request, now_s: float) -> Refusal | None:
        """Charge a request to its tenant, or say why not. A tenant that has just been removed is not charged."""
        account = self._accounts.get(request.account or "")
        if account is None:
            return None
        expected = request.sequences * account.output_mean
        if request.output_tokens is not None:
            expected = min(expected, request.sequences * request.output_tokens)
        costs = {
            LimitKind.REQUESTS: 1.0,
            LimitKind.INPUT_TOKENS: float(request.prompt_tokens),
            LimitKind.OUTPUT_TOKENS: expected,
        }
        waits_s = {kind: bucket.wait_s(costs[kind], now_s) for kind, bucket in account.buckets.items()}
        if account.concurrency is not None and account.running >= account.concurrency:
            waits_s[LimitKind.CONCURRENCY] = account.duration_mean_s / account.concurrency
        if any(waits_s.values()):
            return _refusal(account, waits_s)
        for kind, bucket in account.buckets.items():
            bucket.take(costs[kind], now_s)
        account.running += 1
        self._charges[request.id] = _Charge(account, float(request.prompt_tokens), expected, request.sequences, now_s)
        return None

    def reported(self, request_id: str, usage: Usage, now_s: float) -> None:
        """Replace the estimates by what the engine counted."""
        charge = self._charges.get(request_id)
        if charge is None or charge.settled:
            return
        charge.settled = True
        account = charge.account
        account.take(LimitKind.INPUT_TOKENS, usage.prompt_tokens - charge.input_tokens, now_s)
        account.take(LimitKind.OUTPUT_TOKENS, usage.completion_tokens - charge.output_tokens, now_s)
        account.output_mean += _MEMORY * (usage.completion_tokens / charge.sequences - account.output_mean)
        account.input_tokens += usage.prompt_tokens
        account.output_tokens += usage.completion_tokens

    def end(self, request_id: str, outcome: Outcome, attempts: int, now_s: float) -> None:
        """A request has ended, after `attempts` legs. Nothing happens for one that was not charged."""
        charge = self._charges.pop(request_id, None)
        if charge is None:
            return
        account = charge.account
        account.running -= 1
        account.outcomes[outcome] = account.outcomes.get(outcome, 0) + 1
        if attempts:
            account.duration_mean_s += _MEMORY * (now_s - charge.arrived_s - account.duration_mean_s)
        if not charge.settled and not (attempts and outcome in _CHARGED):
            account.take(LimitKind.INPUT_TOKENS, -charge.input_tokens, now_s)
            account.take(LimitKind.OUTPUT_TOKENS, -charge.output_tokens, now_s)

    def left(self, tenant: str | None, now_s: float) -> tuple[Allowance, ...]:
        """What remains of a tenant's limits; empty if it has none."""
        account = self._accounts.get(tenant or "")
        if account is None:
            return ()
        return tuple(
            Allowance(
                kind,
                limit=floor(bucket.capacity),
                remaining=max(0, floor(bucket.level(now_s))),
                reset_s=bucket.full_in_s(now_s),
            )
            for kind, bucket in account.buckets.items()
        )

    def statistics(self) -> dict[str, TenantStatistics]:
        """By tenant; those configured now."""
        return {
            name: TenantStatistics(
                running=account.running,
                outcomes=dict(account.outcomes),
                limited=dict(account.limited),
                input_tokens=account.input_tokens,
                output_tokens=account.output_tokens,
            )
            for name, account in self._accounts.items()
        }

    def check(self) -> None:
        """Raise InternalError if an invariant does not hold."""
        for account in {id(one): one for one in self._everybody()}.values():
            charges = sum(charge.account is account for charge in self._charges.values())
            if account.running != charges:
                raise InternalError(f"tenant {account.name} counts {account.running} requests, {charges} are charged")

    def _everybody(self) -> list[_Account]:
        return [*self._accounts.values(), *(charge.account for charge in self._charges.values())]


def _sizes(limits: TenantLimits) -> dict[LimitKind, tuple[float, float]]:
    """Rate per second and capacity of each bucket."""
    sizes: dict[LimitKind, tuple[float, float]] = {}
    if limits.requests_per_s is not None:
        sizes[LimitKind.REQUESTS] = (limits.requests_per_s, limits.burst_requests or max(1.0, limits.requests_per_s))
    for kind, per_minute in (
        (LimitKind.INPUT_TOKENS, limits.input_tokens_per_minute),
        (LimitKind.OUTPUT_TOKENS, limits.output_tokens_per_minute),
    ):
        if per_minute is not None:
            sizes[kind] = (per_minute / 60, float(per_minute))
    return sizes


def _refusal(account: _Account, waits_s: Mapping[LimitKind, float]) -> Refusal:
    kind = max(waits_s, key=lambda one: waits_s[one])
    account.limited[kind] = account.limited.get(kind, 0) + 1
    account.outcomes[Outcome.RATE_LIMITED] = account.outcomes.get(Outcome.RATE_LIMITED, 0) + 1
    bucket = account.buckets.get(kind)
    limit = account.concurrency if bucket is None else 60 * bucket.rate_per_s
    if kind is LimitKind.REQUESTS and bucket is not None:
        limit = bucket.rate_per_s
    message = (
        f"Rate limit reached for tenant {account.name}: {limit:g} {_UNITS[kind]}. "
        f"Please try again in {waits_s[kind]:.3g} s."
    )
    return Refusal(kind, waits_s[kind], message)
