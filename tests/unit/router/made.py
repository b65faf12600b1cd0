"""Routers and endpoints as the tests of the router have them."""

from collections.abc import Mapping
from random import Random
from types import MappingProxyType

from beaconry.config.flow import Flow
from beaconry.config.gateway import Deadlines, GatewayConfig, Health, Retry
from beaconry.config.tenants import ModelConfig
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.exact import ExactIndex
from beaconry.latency.rates import RateBook
from beaconry.plugins.registry import Registry
from beaconry.router.caches import Caches
from beaconry.router.router import Router
from beaconry.scheduling.scheduler import make_scheduler
from beaconry.values.endpoint import Endpoint

RETRY = Retry(attempts=3, budget_ratio=0.2, budget_floor=100)


def endpoint(name: str, model: str = "m", **fields: object) -> Endpoint:
    """An engine of the model."""
    return Endpoint(name=name, host="127.0.0.1", port=8000 + ord(name[0]), model=model, **fields)


def make_router(
    policy: str, flow: Flow, retry: Retry = RETRY, models: Mapping[str, ModelConfig] = MappingProxyType({})
) -> Router:
    """A router with short deadlines and no endpoints, that ejects after two failures."""
    rates = RateBook()
    return Router(
        GatewayConfig(
            deadlines=Deadlines(first_byte_s=30.0, idle_s=10.0, total_s=100.0),
            retry=retry,
            health=Health(eject_after=2, eject_base_s=5.0, unhealthy_after=2),
            flow=flow,
            models=dict(models),
        ),
        scheduler=make_scheduler(policy, rates, Registry.installed()),
        caches=Caches(ApproximateIndex(limit_bytes=1 << 20), ExactIndex()),
        rates=rates,
        rng=Random(1),
    )
