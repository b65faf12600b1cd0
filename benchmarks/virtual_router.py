"""The production router for virtual time, with everything a module does not ask about at its default."""

from random import Random

from beaconry.config.flow import Flow
from beaconry.config.gateway import GatewayConfig
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.exact import ExactIndex
from beaconry.latency.forecasts import Forecasts
from beaconry.latency.rates import RateBook
from beaconry.router.caches import Caches
from beaconry.router.router import Router
from beaconry.scheduling.scheduler import Scheduler


def virtual_router(
    scheduler: Scheduler,
    rates: RateBook,
    seed: int,
    *,
    caches: Caches | None = None,
    forecasts: Forecasts | None = None,
    flow: Flow = Flow(),  # noqa: B008 frozen
) -> Router:
    """A router that has learnt nothing; `rates` and `forecasts` are those that `scheduler` asks, `caches` empty ones of both kinds."""
    return Router(
        GatewayConfig(flow=flow),
        scheduler=scheduler,
        caches=Caches(ApproximateIndex(), ExactIndex()) if caches is None else caches,
        rates=rates,
        rng=Random(seed),
        forecasts=forecasts,
    )
