"""Routers and endpoints as the tests of the router have them."""

from random import Random

from beaconry.config.gateway import Deadlines, GatewayConfig, Health, Retry
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.exact import ExactIndex
from beaconry.latency.forecasts import Forecasts
from beaconry.latency.kv_links import KvLinks
from beaconry.latency.rates import RateBook
from beaconry.plugins.registry import Registry
from beaconry.router.caches import Caches
from beaconry.router.router import Router
from beaconry.scheduling.scheduler import make_scheduler
from beaconry.values.endpoint import Endpoint

RETRY = Retry(attempts=3, budget_ratio=0.2, budget_floor=100)
USUAL = {
    "deadlines": Deadlines(first_byte_s=30.0, idle_s=10.0, total_s=100.0),
    "retry": RETRY,
    "health": Health(eject_after=2, eject_base_s=5.0, unhealthy_after=2),
    "seed": 1,
}
"""Short deadlines, as many retries as a test needs, and ejection after two failures."""


def endpoint(name: str, model: str = "m", **fields: object) -> Endpoint:
    """An engine of the model."""
    return Endpoint(name=name, host="127.0.0.1", port=8000 + ord(name[0]), model=model, **fields)


def make_caches(rates: RateBook) -> Caches:
    """Empty ones, and a mebibyte of index."""
    return Caches(ApproximateIndex(limit_bytes=1 << 20), ExactIndex(), links=KvLinks(rates))


def make_router(
    rates: RateBook | None = None,
    forecasts: Forecasts | None = None,
    caches: Caches | None = None,
    **sections: object,
) -> Router:
    """A router without endpoints. `sections`: of its configuration, instead of those of `USUAL`.

    `forecasts`, where there are any, are asked instead of `rates`.
    """
    config = GatewayConfig(**{**USUAL, **sections})
    rates = RateBook() if rates is None else rates
    return Router(
        config,
        scheduler=make_scheduler(config.policy, rates if forecasts is None else forecasts, Registry.installed()),
        caches=make_caches(rates) if caches is None else caches,
        rates=rates,
        rng=Random(config.seed),
        forecasts=forecasts,
    )
