"""Does the simulator say what the real-time stack does?

The same requests, twice: through `beaconry up`, with HTTP, processes and clocks, and through the same router and engine model in virtual
time. Two loads: `one by one`, where each request ends before the next one comes, so that timing cannot matter and every decision must be
the same; and `together`, random arrivals at a load where decisions depend on what runs, and only the latencies' percentiles can agree.
Both through engines that do both, and through engines for prefill and decode, which hand KV over.

    python -m benchmarks.parity                  # two minutes; on a machine with a core to spare
"""

import argparse
import asyncio
import urllib.request
from itertools import islice
from random import Random

import uvloop
from msgspec import Struct

from beaconry.apps import engine as engine_verb
from beaconry.apps.assemble import make_router
from beaconry.config.gateway import Listen
from beaconry.config.loading import load_yaml
from beaconry.engine_model.engine import Engine
from beaconry.io.load.client import LoadClient, LoadOptions
from beaconry.io.load.target import parse_target
from beaconry.manifests.model_service import ModelService
from beaconry.manifests.processes import count_ports, plan_gateway, plan_processes
from beaconry.sim.conditions import Conditions
from beaconry.sim.fleet import Fleet
from beaconry.values.stage import Stage
from beaconry.workload.arrivals import fixed, poisson
from beaconry.workload.distribution import quantile
from beaconry.workload.plan import Plan
from beaconry.workload.prompts import PromptText
from beaconry.workload.sample import Sample
from beaconry.workload.synthetic import Bounds, Shape, conversations
from benchmarks import report
from benchmarks.up import up

SPEC = """\
apiVersion: beaconry/v1alpha1
kind: ModelService
metadata: {{name: parity}}
spec:
  model: {{uri: "hf://some/model", name: m}}
  engine: {{type: sim, blocks: 3000, kvEvents: false, args: ["--step-time={step_time}", --max-num-seqs=16, --kv-gb-per-s=4]}}
  pools: {pools}
  router: {{policy: {policy}, access: {{debugHeaders: true}}, disaggregation: {{minUncachedTokens: 200}}}}
"""
TOGETHER = "[{{name: engine, replicas: {engines}}}]"
APART = "[{{name: p, role: prefill, replicas: {half}}}, {{name: d, role: decode, replicas: {half}}}]"
STEP_TIME = "fixed_s=0.02,per_seq_s=0.0005,per_context_token_s=1e-7,prefill_tps=16000"
"""Slow enough that a millisecond of HTTP hardly shows."""
SHAPE = Shape(
    prompt_tokens=Bounds(low=50, high=400),
    output_tokens=Bounds(low=4, high=14),
    groups=8,
    prefix_tokens=Bounds(low=500, high=2000),
    zipf=0.6,
)
_DECISIONS = "beaconry_disaggregation_decisions_total{"
SKIPPED_ARGV = 4
"""`python -m beaconry engine` before the engine's own flags."""


class Load(Struct, frozen=True, kw_only=True):
    """One way of sending the same kind of requests."""

    name: str
    requests: int
    rate: float
    at_random: bool
    pools: str = TOGETHER

    def plan(self) -> Plan:
        """Always the same requests."""
        rng = Random(7)
        times = poisson(self.rate, rng) if self.at_random else fixed(self.rate)
        return Plan(islice(conversations(SHAPE, times, rng), self.requests), size=self.requests)


class Run(Struct, frozen=True, kw_only=True):
    """One load, one way."""

    samples: list[Sample]
    in_two_legs: float
    """How many requests ran in two legs."""


async def in_real_time(spec: str, load: Load) -> Run:
    """The load through processes and HTTP."""
    async with up(spec) as address:
        target = parse_target(address, "m", (("x-beaconry-debug", "1"),))
        client = LoadClient(load.plan(), PromptText(), target, LoadOptions(chat=False))
        samples = await client.run()
        page = await asyncio.to_thread(_page, f"{address.removesuffix('/v1')}/metrics")
    divided = [
        line for line in page.splitlines() if line.startswith(_DECISIONS) and 'decision="prefill-decode"' in line
    ]
    return Run(samples=samples, in_two_legs=sum(float(line.split()[-1]) for line in divided))


def _page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10.0) as answer:
        return str(answer.read().decode())


def in_virtual_time(spec: str, load: Load) -> Run:
    """The load through the same router and engine model on an event heap."""
    service = load_yaml(spec, ModelService, "spec")
    processes = plan_processes(service, range(1, 1 + count_ports(service)), "python")
    parser = argparse.ArgumentParser()
    engine_verb.configure(parser)
    engines, ways = {}, {}
    for process in processes:
        options = engine_verb.options_of(parser.parse_args(process.argv[SKIPPED_ARGV:]))
        engines[process.name] = Engine(options.settings, options.step_time)
        if options.kv_transfer is not None:
            ways[process.name] = options.kv_transfer.way
    router = make_router(plan_gateway(service, Listen()))
    endpoints = {process.name: process.endpoint for process in processes}
    fleet = Fleet([router], engines, endpoints, conditions=Conditions(kv_ways=ways))
    samples = fleet.run(load.plan(), until_s=3600.0)
    plans = router.statistics(fleet.now_s).models["m"].plans
    return Run(samples=samples, in_two_legs=sum(count for (stage, _), count in plans.items() if stage is Stage.PREFILL))


def compare(real: Run, virtual: Run) -> dict[str, float]:
    """Shares of requests with the same endpoint and cached tokens; percentiles of both, in ms, and relative differences."""
    pairs = list(zip(sorted(real.samples, key=_index), sorted(virtual.samples, key=_index), strict=True))
    figures = {
        "requests": float(len(pairs)),
        "failed": float(sum(one.error is not None or two.error is not None for one, two in pairs)),
        "same_endpoint": sum(one.endpoint == two.endpoint for one, two in pairs) / len(pairs),
        "hit_tokens_real": float(sum(one.cached_tokens or 0 for one, _ in pairs)),
        "hit_tokens_virtual": float(sum(two.cached_tokens or 0 for _, two in pairs)),
        "in_two_legs_real": real.in_two_legs,
        "in_two_legs_virtual": virtual.in_two_legs,
    }
    for name in ("ttft_s", "tpot_s"):
        sides = [sorted(getattr(pair[side], name) or 0.0 for pair in pairs) for side in (0, 1)]
        for share in (0.5, 0.9, 0.99):
            one, two = (quantile(values, share) for values in sides)
            point = f"{name[:4]}_p{100 * share:.0f}"
            figures |= {
                f"{point}_real_ms": 1e3 * one,
                f"{point}_virtual_ms": 1e3 * two,
                f"{point}_difference": two / one - 1,
            }
    return figures


def _index(sample: Sample) -> int:
    return sample.index


def show(name: str, figures: dict[str, float]) -> None:
    """Print one load."""
    points = [f"{what}_p{point}" for what in ("ttft", "tpot") for point in (50, 90, 99)]
    rows = [
        (
            point.upper().replace("_", " "),
            figures[f"{point}_real_ms"],
            figures[f"{point}_virtual_ms"],
            f"{100 * figures[f'{point}_difference']:+.1f}",
        )
        for point in points
    ]
    report.table(
        f"{name}: the same {figures['requests']:.0f} requests", ("", "real ms", "virtual ms", "difference %"), rows
    )
    print(
        f"same endpoint: {figures['same_endpoint']:.1%}; cached tokens: {figures['hit_tokens_real']:.0f} real, "
        f"{figures['hit_tokens_virtual']:.0f} virtual; in two legs: {figures['in_two_legs_real']:.0f} real, "
        f"{figures['in_two_legs_virtual']:.0f} virtual; failed: {figures['failed']:.0f}"
    )


def main() -> None:
    """Run all loads both ways."""
    parser = report.options("The same requests in real and in virtual time.")
    parser.add_argument("--policy", default="expected-cost")
    parser.add_argument("--engines", type=int, default=4)
    args = parser.parse_args()
    short = args.smoke
    loads = (
        Load(name="one by one", requests=3 if short else 40, rate=2.0, at_random=False),
        Load(name="together", requests=30 if short else 240, rate=12.0, at_random=True),
        Load(name="two legs, one by one", requests=3 if short else 40, rate=2.0, at_random=False, pools=APART),
        Load(name="two legs, together", requests=30 if short else 240, rate=12.0, at_random=True, pools=APART),
    )
    found = {}
    for load in loads:
        pools = load.pools.format(engines=args.engines, half=args.engines // 2)
        spec = SPEC.format(step_time=STEP_TIME, pools=pools, policy=args.policy)
        found[load.name] = compare(uvloop.run(in_real_time(spec, load)), in_virtual_time(spec, load))
        show(load.name, found[load.name])
    report.save(args.json, found)


if __name__ == "__main__":
    main()
