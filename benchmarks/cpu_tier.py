"""What does memory beside the GPU gain where caches hold a third of what is asked for, and what does it gain to know of it?

Virtual time: the real router and engine model (`beaconry.sim`), the same requests for every row. Prompts begin with one of 96 shared
prefixes of 4,000 to 8,000 tokens (Zipf 0.6); four engines hold a third of them on their GPUs, four times as much in their hosts' memory,
and all in a shared store. A token has 131 kB; a host's link has 25 GB/s, the shared store gives each engine 12.5 GB/s. The router is told
nothing of these figures: it supposes, and learns. All caches are cold at the start.

    python -m benchmarks.cpu_tier
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from random import Random

from msgspec import Struct

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.offload_tier import OffloadTier
from beaconry.kvindex.approximate import ApproximateIndex
from beaconry.kvindex.exact import ExactIndex
from beaconry.latency.rates import RateBook
from beaconry.latency.tier_loads import TierLoads
from beaconry.plugins.registry import Registry
from beaconry.router.caches import Caches
from beaconry.scheduling.scheduler import make_scheduler
from beaconry.sim.conditions import Conditions
from beaconry.sim.fleet import Fleet
from beaconry.values.endpoint import Endpoint
from beaconry.values.kv_events import AllBlocksCleared, KvEvent, Tier
from beaconry.workload.plan import Plan
from benchmarks import report
from benchmarks.policies import COUNTED_S, DRAIN_S, SETTINGS, TIMING, outcome, prefixes
from benchmarks.virtual_router import virtual_router

ENGINES = 4
RATES = (12, 16, 24)
"""Requests per second; warm and balanced engines without pressure would serve 46."""
WARMUP_S = 20.0
OPENINGS = prefixes(96, 4000, 8000, 0.6)
KV_BYTES_PER_TOKEN = 131_072
CPU_BLOCKS = 4 * SETTINGS.num_blocks
SHARED_BLOCKS = 64 * SETTINGS.num_blocks


class GpuOnly(ExactIndex):
    """A router that passes over what events tell of other tiers."""

    def apply(self, name: str, rank: int, events: Iterable[KvEvent]) -> None:
        """Take what is on the GPU."""
        super().apply(name, rank, [e for e in events if isinstance(e, AllBlocksCleared) or e.tier is Tier.GPU])


class Setup(Struct, frozen=True, kw_only=True):
    """One row: what the engines have, and what the router sees."""

    cpu: bool = False
    shared: bool = False
    policy: str = "expected-cost"
    exact: bool = True
    gpu_only: bool = False


SETUPS = {
    "round robin": Setup(policy="round-robin", exact=False),
    "GPU, approximate": Setup(exact=False),
    "GPU, exact": Setup(),
    "host memory, round robin": Setup(cpu=True, policy="round-robin", exact=False),
    "host memory, approximate": Setup(cpu=True, exact=False),
    "host memory, exact on the GPU only": Setup(cpu=True, gpu_only=True),
    "host memory, exact": Setup(cpu=True),
    "shared store, round robin": Setup(shared=True, policy="round-robin", exact=False),
    "shared store, exact": Setup(shared=True),
}

SMOKE = ("GPU, exact", "host memory, approximate", "host memory, exact")


class Row(Struct, frozen=True, kw_only=True):
    """One run in figures, over the requests that arrived while it counted."""

    setup: str
    rate: int
    seed: int
    ttft_p50_ms: float
    ttft_p90_ms: float
    hit_percent: float
    loaded_percent: float
    """Of all prompt tokens since the start, those that came from beside the GPU."""
    busiest: float
    """Prompt tokens of the busiest engine over the mean: 1 is even."""
    done_per_s: float


def run(name: str, rate: int, seed: int) -> Row:
    """One cold start."""
    setup = SETUPS[name]
    until_s = WARMUP_S + COUNTED_S
    block_bytes = KV_BYTES_PER_TOKEN * SETTINGS.block_tokens
    store = OffloadTier(SHARED_BLOCKS, block_bytes / 12.5e9, Tier.SHARED)
    engines, endpoints = {}, {}
    for i in range(ENGINES):
        tiers = [OffloadTier(CPU_BLOCKS, block_bytes / 25e9)] if setup.cpu else []
        tiers += [store] if setup.shared else []
        engines[f"e{i}"] = Engine(SETTINGS, TIMING, tiers=tiers, record_events=setup.exact)
        endpoints[f"e{i}"] = Endpoint(name=f"e{i}", host="sim", port=1, model="m")
    rates = RateBook()
    exact = GpuOnly() if setup.gpu_only else ExactIndex()
    router = virtual_router(
        make_scheduler(setup.policy, rates, Registry.installed()),
        rates,
        seed,
        caches=Caches(ApproximateIndex(), exact, TierLoads(rates)),
    )
    plan = Plan(OPENINGS(rate, Random(seed)), until_s=until_s)
    fleet = Fleet([router], engines, endpoints, conditions=Conditions(kv_events=setup.exact))
    samples = fleet.run(plan, until_s=until_s + DRAIN_S)
    told = outcome(samples, WARMUP_S, workload=name, load=rate, policy=setup.policy, seed=seed)
    totals = [engine.statistics() for engine in engines.values()]
    prompts = [statistics.prompt_tokens for statistics in totals]
    return Row(
        setup=name,
        rate=rate,
        seed=seed,
        ttft_p50_ms=told.ttft_p50_ms,
        ttft_p90_ms=told.ttft_p90_ms,
        hit_percent=told.hit_percent,
        loaded_percent=100 * sum(one.loaded_tokens for one in totals) / max(sum(prompts), 1),
        busiest=max(prompts) * ENGINES / max(sum(prompts), 1),
        done_per_s=told.done_per_s,
    )


def table(rows: Sequence[Row], rate: int) -> None:
    """One line per setup: medians over the seeds, and the range of the 90th percentile."""
    lines = []
    for name in dict.fromkeys(row.setup for row in rows):
        mine = [row for row in rows if (row.setup, row.rate) == (name, rate)]
        p90 = sorted(row.ttft_p90_ms for row in mine)
        lines.append(
            (
                name,
                report.median(row.ttft_p50_ms for row in mine),
                f"{report.median(p90):,.0f} ({p90[0]:,.0f}-{p90[-1]:,.0f})",
                report.median(row.hit_percent for row in mine),
                report.median(row.loaded_percent for row in mine),
                report.median(row.busiest for row in mine),
                report.median(row.done_per_s for row in mine),
            )
        )
    columns = ("engines and view", "TTFT p50 ms", "p90 ms", "hit %", "loaded %", "busiest", "done/s")
    report.table(f"{rate} requests/s: median (range) of {len(mine)} cold starts", columns, lines)


def main() -> None:
    parser = report.options(__doc__.splitlines()[0])
    parser.add_argument("--rate", default=",".join(map(str, RATES)), help="requests per second")
    parser.add_argument("--seeds", type=int, default=3, help="cold starts per cell")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    rates = [24] if args.smoke else [int(rate) for rate in args.rate.split(",")]
    seeds = range(1, 2 if args.smoke else 1 + args.seeds)
    names = SMOKE if args.smoke else tuple(SETUPS)
    cells = [(name, rate, seed) for rate in rates for name in names for seed in seeds]
    with ProcessPoolExecutor(args.workers) as executor:
        rows = list(executor.map(run, *zip(*cells, strict=True)))
    for rate in rates:
        table(rows, rate)
    report.save(args.json, rows)


if __name__ == "__main__":
    main()
