"""What do keys, limits, terms and model names cost a request?

CPU time per call in one process, the least of several rounds, so that other work on the machine counts little. The first column of
each table is what is paid without the feature, in the same run.

    python -m benchmarks.tenants
"""

import json
from collections.abc import Callable
from functools import partial
from random import Random
from time import process_time

from msgspec import Struct

from beaconry.apps.assemble import make_router
from beaconry.config.gateway import GatewayConfig
from beaconry.config.tenants import (
    ModelConfig,
    Objective,
    Target,
    TenantConfig,
    TenantLimits,
    TenantsFile,
    TrustedHeader,
)
from beaconry.router.effects import StartLeg
from beaconry.router.facts import EndpointSeen, LegFinished, RequestArrived, TenantsChanged
from beaconry.router.router import Router
from beaconry.tenancy.keys import hash_of, key_of
from beaconry.tenancy.reception import Reception
from beaconry.tenancy.rewrites import Rewrites
from beaconry.values.endpoint import Endpoint
from beaconry.values.errors import CallerError
from beaconry.values.request import Api, Request, Usage
from beaconry.wire.model_name import NameRestorer
from beaconry.wire.openai import parse
from beaconry.wire.usage import StreamWatch
from benchmarks import report

ROUNDS = 7
TENANTS = 1000
MODEL, ALIAS = "meta-llama/Llama-3.3-70B-Instruct", "assistant"
USAGE = Usage(prompt_tokens=640, completion_tokens=20)


class Cost(Struct, frozen=True, kw_only=True):
    """Microseconds of CPU time with and without one feature."""

    what: str
    without_us: float | None
    with_us: float


def least_us(call: Callable[[], object], times: int) -> float:
    """Per call."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = process_time()
        for _ in range(times):
            call()
        best = min(best, process_time() - start)
    return 1e6 * best / times


def headers(key: str) -> list[tuple[bytes, bytes]]:
    """What OpenAI's client sends, and what a trusted front end adds."""
    plain = ["host", "accept", "accept-encoding", "user-agent", "x-stainless-lang", "x-stainless-os", "content-type"]
    return [
        *((name.encode(), b"a value of some length") for name in plain),
        (b"authorization", b"Bearer " + key.encode()),
        (b"x-llm-d-inference-fairness-id", b"alice"),
        (b"x-llm-d-inference-objective", b"chat"),
        (b"x-llm-d-slo-ttft-ms", b"250"),
    ]


def receive(reception: Reception, given: list[tuple[bytes, bytes]]) -> object:
    try:
        return reception.terms(reception.caller(given), given, MODEL)
    except CallerError as refused:
        return refused


def at_the_door(times: int) -> list[Cost]:
    """Who asks, and on what terms."""
    rng = Random(1)
    keys = [key_of(rng.randbytes(32)) for _ in range(TENANTS)]
    file = TenantsFile(tenants={f"t{i}": TenantConfig(keys=(hash_of(key),)) for i, key in enumerate(keys)})
    objectives = {"chat": Objective(priority=10, slo_ttft_s=0.5)}
    nobody, alone, known, trusting = Reception(), Reception(), Reception(), Reception()
    alone.take_keys(TenantsFile(tenants={"t": TenantConfig(keys=(hash_of(keys[500]),))}), "tenants.yaml")
    for reception, trusted in ((known, ()), (trusting, tuple(TrustedHeader))):
        reception.configure({}, objectives, trusted)
        reception.take_keys(file, "tenants.yaml")
    good, wrong = headers(keys[500]), headers(keys[500][:-1] + "?")
    without = least_us(lambda: receive(nobody, good), times)
    return [
        Cost(what="nothing configured", without_us=None, with_us=without),
        Cost(what="the only key", without_us=without, with_us=least_us(lambda: receive(alone, good), times)),
        Cost(what=f"a key of {TENANTS}", without_us=without, with_us=least_us(lambda: receive(known, good), times)),
        Cost(
            what="and three trusted headers",
            without_us=without,
            with_us=least_us(lambda: receive(trusting, good), times),
        ),
        Cost(what="a wrong key", without_us=without, with_us=least_us(lambda: receive(known, wrong), times)),
    ]


def served(router: Router, account: str | None, times: int) -> float:
    """One request through the machine, from arrival to end."""
    count = iter(range(10**9))

    def one() -> None:
        number = next(count)
        request = Request(
            id=str(number),
            model=MODEL,
            api=Api.CHAT,
            arrived_s=float(number),
            prompt_tokens=640,
            output_tokens=100,
            account=account,
        )
        for effect in router.handle(RequestArrived(request), float(number)):
            if isinstance(effect, StartLeg):
                router.handle(LegFinished(effect.leg, 200, USAGE), number + 0.5)

    return least_us(one, times)


def in_the_machine(times: int) -> list[Cost]:
    """Limits on everything, none of them in the way."""
    plain, limited = make_router(GatewayConfig(policy="round-robin")), make_router(GatewayConfig(policy="round-robin"))
    for router in (plain, limited):
        router.handle(EndpointSeen(Endpoint(name="e", host="h", port=1, model=MODEL)), 0.0)
    limits = TenantLimits(
        requests_per_s=1000, input_tokens_per_minute=10**8, output_tokens_per_minute=10**8, concurrency=1000
    )
    limited.handle(TenantsChanged({"acme": limits}), 0.0)
    without = served(plain, None, times)
    return [Cost(what="four limits", without_us=without, with_us=served(limited, "acme", times))]


def names(times: int) -> list[Cost]:
    """Bodies to the engine, and one event of a stream back."""
    rewrites = Rewrites({ALIAS: ModelConfig(targets=(Target(model=MODEL), Target(model="b", weight=0)))})
    target_of = partial(rewrites.target, key="a session")
    costs = []
    for size in (200, 20_000):
        messages = [{"role": "user", "content": "x" * size}]
        asked, known = (json.dumps({"model": model, "messages": messages}).encode() for model in (ALIAS, MODEL))
        costs.append(
            Cost(
                what=f"a body of {len(asked)} bytes",
                without_us=least_us(partial(parse, Api.CHAT, known), times // 4),
                with_us=least_us(partial(parse, Api.CHAT, asked, target_of), times // 4),
            )
        )
    choice = {"index": 0, "delta": {"content": " token"}, "logprobs": None, "finish_reason": None}
    event = b"data: " + json.dumps({"id": "chatcmpl-1", "model": MODEL, "choices": [choice]}).encode() + b"\n\n"
    watch, restorer = StreamWatch(strip=False), NameRestorer(MODEL, ALIAS)
    for events in (1, 50):
        data = event * events
        without = least_us(partial(watch.feed, data), times // events)
        both = least_us(partial(_both, restorer, watch, data), times // events)
        costs.append(Cost(what=f"an event, {events} at a time", without_us=without / events, with_us=both / events))
    return costs


def _both(restorer: NameRestorer, watch: StreamWatch, data: bytes) -> bytes:
    return watch.feed(restorer.feed(data))


def main() -> None:
    args = report.options(__doc__.splitlines()[0]).parse_args()
    times = 2_000 if args.smoke else 40_000
    figures = {"door": at_the_door(times), "machine": in_the_machine(times), "names": names(times)}
    for title, costs in figures.items():
        rows = [(cost.what, cost.without_us, cost.with_us) for cost in costs]
        report.table(f"{title}, microseconds", ("", "without", "with"), rows)
    report.save(args.json, figures)


if __name__ == "__main__":
    main()
