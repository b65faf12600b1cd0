"""Prefill and decode apart on 16 H200: what does it buy, what does it cost, and when does it lose?

Virtual time: the real router and engine model. gpt-oss-120b, 16 accelerators in every set-up, KV over 400 Gb/s per accelerator, all caches
cold and no prompt like another. Published figures of the same fleet and traffic: llm-d's guide to prefill/decode disaggregation, 5,000
tokens in and 250 out at 45 requests/s. Prices: 4.00 dollars per H200 and hour (specialised clouds asked 3.50 to 4.50 in May 2026).

The preset's prefill is that of InferenceMAX's measurements: 23,000 tokens/s on one H200. The guide's own router is configured with 33,821,
measured there; eight prefill engines need 28,100 each at 45 requests/s. So the guide's fleet is simulated with both.

    python -m benchmarks.disaggregation
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from beaconry.apps.assemble import make_router
from beaconry.apps.virtual_fleet import TraceFiles, make_machines
from beaconry.config.gateway import Listen
from beaconry.config.loading import load_yaml
from beaconry.engine_model.roofline import Roofline
from beaconry.manifests.model_service import ModelService
from beaconry.manifests.processes import plan_gateway
from beaconry.sim.fleet import Fleet
from beaconry.sim.scenario import Scenario
from beaconry.sim.setting import conditions_of
from beaconry.sim.workloads import openings
from beaconry.workload.plan import Plan
from beaconry.workload.sample import Slo
from beaconry.workload.summary import Summary, summarise
from benchmarks import report

ACCELERATORS = 16
PRICE = 4.00
"""Dollars per accelerator and hour."""
WARMUP_S, DURATION_S, SETTLE_S = 30.0, 130.0, 120.0
STEADY = Slo(ttft_s=2.0, itl_s=0.010)
"""Even tokens, whenever they begin."""
PROMPT = Slo(ttft_s=0.5, itl_s=0.050)
"""An early first token, and then faster than anybody reads."""
PRESET_PREFILL = 23_472
"""Tokens per second of the preset's full steps of 8,192 tokens."""
PREFILLS = (PRESET_PREFILL, 30_000, 33_821)
"""The guide's fleet is simulated with: the preset's, one in between, and the guide's own."""

TEXT = """\
apiVersion: beaconry/v1alpha1
kind: Scenario
metadata: {{name: disaggregation}}
service:
  model: {{uri: "hf://openai/gpt-oss-120b", name: m}}
  engine: {{type: sim, preset: gpt-oss-120b/h200}}
  pools: [{pools}]
  router: {{policy: {policy}, disaggregation: {{mode: {mode}}}}}
network: {{kvLink: {link}}}
workloads: [{{type: prompts, arrivals: {{rate: {rate}}}, promptTokens: {prompt}, outputTokens: {output}}}]
durationS: {until}
"""
WHOLE = "{name: engine, replicas: 16}"
PREFILL = "{{name: prefill, role: prefill, replicas: {}}}"
DECODE = "{{name: decode, role: decode, replicas: {}, engine: {{type: sim, preset: gpt-oss-120b/h200x4}}}}"


def apart(prefill: int, decode: int) -> str:
    """Pools of so many prefill engines on one accelerator, and decode engines on four."""
    assert prefill + 4 * decode == ACCELERATORS
    return f"{PREFILL.format(prefill)}, {DECODE.format(decode)}"


class Setup(Struct, frozen=True, kw_only=True):
    """How 16 accelerators serve."""

    pools: str = WHOLE
    policy: str = "expected-cost"
    mode: str = "auto"
    link: str = "infiniband"


SETUPS = {
    "16 x TP1, round robin": Setup(policy="round-robin"),
    "16 x TP1": Setup(),
    "4 x TP4": Setup(pools="{name: engine, replicas: 4, engine: {type: sim, preset: gpt-oss-120b/h200x4}}"),
    "8 x TP1 + 2 x TP4": Setup(pools=apart(8, 2)),
    "12 x TP1 + 1 x TP4": Setup(pools=apart(12, 1)),
    "12 x TP1 + 1 x TP4, TCP": Setup(pools=apart(12, 1), link="tcp"),
    "8 x TP1 + 2 x TP4, always": Setup(pools=apart(8, 2), mode="always"),
    "12 x TP1 + 1 x TP4, always": Setup(pools=apart(12, 1), mode="always"),
}
LONG = (
    "16 x TP1, round robin",
    "16 x TP1",
    "4 x TP4",
    "8 x TP1 + 2 x TP4",
    "12 x TP1 + 1 x TP4",
    "12 x TP1 + 1 x TP4, TCP",
)
SHORT = ("16 x TP1", "4 x TP4", "8 x TP1 + 2 x TP4", "8 x TP1 + 2 x TP4, always", "12 x TP1 + 1 x TP4, always")


class Traffic(Struct, frozen=True, kw_only=True):
    """Requests of one length."""

    prompt: int
    output: int
    rate: float
    setups: tuple[str, ...]


GUIDE = Traffic(prompt=5000, output=250, rate=45, setups=LONG)
SHORTEST = Traffic(prompt=200, output=200, rate=60, setups=SHORT)
TRAFFIC = (
    Traffic(prompt=5000, output=250, rate=15, setups=LONG),
    Traffic(prompt=5000, output=250, rate=30, setups=LONG),
    GUIDE,
    Traffic(prompt=5000, output=500, rate=30, setups=LONG),
    SHORTEST,
    Traffic(prompt=200, output=200, rate=120, setups=SHORT),
)
PUBLISHED = {"16 x TP1, round robin": (0.53, 25.0, 6.7), "8 x TP1 + 2 x TP4": (1.40, 8.0, 3.5)}
"""TTFT s, ITL ms and E2E s, all means."""


class Row(Struct, frozen=True, kw_only=True):
    """One run in figures, over the requests that arrived while it counted."""

    traffic: str
    setup: str
    seed: int
    prefill: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    itl_mean_ms: float
    itl_p50_ms: float
    itl_p90_ms: float
    e2e_mean_s: float
    steady_percent: float
    prompt_percent: float
    dollars_per_million: float
    """Per million output tokens."""


def name_of(traffic: Traffic) -> str:
    """A traffic in a few words."""
    return f"{traffic.prompt:,} in, {traffic.output} out, {traffic.rate:g} requests/s"


def run(traffic: Traffic, name: str, seed: int, prefill: int, until_s: float) -> Row:
    """One cold start. `prefill`: tokens per second that one accelerator computes of prompts; one over four, in proportion."""
    setup = SETUPS[name]
    text = TEXT.format(
        pools=setup.pools,
        policy=setup.policy,
        mode=setup.mode,
        link=setup.link,
        rate=traffic.rate,
        prompt=traffic.prompt,
        output=traffic.output,
        until=until_s,
    )
    scenario = load_yaml(text, Scenario, "the benchmark's scenario")
    machines = make_machines(scenario, seed)
    for engine in machines.engines.values():
        assert isinstance(engine.step_time, Roofline)
        engine.step_time = faster(engine.step_time, prefill / PRESET_PREFILL)
    service = ModelService(
        api_version="beaconry/v1alpha1", kind="ModelService", metadata=scenario.metadata, spec=scenario.service
    )
    router = make_router(replace(plan_gateway(service, Listen()), seed=seed))
    conditions = replace(
        conditions_of(scenario, machines.endpoints), request_s=machines.request_s, kv_ways=machines.kv_ways
    )
    fleet = Fleet([router], machines.engines, machines.endpoints, conditions=conditions, seed=seed)
    plan = Plan(openings(scenario.workloads, 1.0, seed, TraceFiles(Path())), until_s=until_s)
    samples = fleet.run(plan, until_s=until_s + SETTLE_S)
    steady, prompt = (summarise(samples, slo=slo, warmup_s=WARMUP_S) for slo in (STEADY, PROMPT))
    return row_of(traffic, name, seed, prefill, steady, prompt)


def faster(step_time: Roofline, factor: float) -> Roofline:
    """A step time with prompts computed so many times as fast; their launch takes what it takes."""
    return replace(
        step_time, per_token_s=step_time.per_token_s / factor, per_attended_s=step_time.per_attended_s / factor
    )


def row_of(traffic: Traffic, name: str, seed: int, prefill: int, steady: Summary, prompt: Summary) -> Row:
    """The figures of a run, summarised under both sets of targets."""
    ttft, itl, e2e = steady.ttft_s, steady.tpot_s, steady.e2e_s
    assert ttft is not None
    assert itl is not None
    assert e2e is not None
    return Row(
        traffic=name_of(traffic),
        setup=name,
        seed=seed,
        prefill=prefill,
        ttft_mean_s=ttft.mean,
        ttft_p50_s=ttft.p50,
        ttft_p90_s=ttft.p90,
        itl_mean_ms=1e3 * itl.mean,
        itl_p50_ms=1e3 * itl.p50,
        itl_p90_ms=1e3 * itl.p90,
        e2e_mean_s=e2e.mean,
        steady_percent=100 * (steady.attainment or 0.0),
        prompt_percent=100 * (prompt.attainment or 0.0),
        dollars_per_million=1e6 * PRICE * ACCELERATORS / 3600 / steady.output_tokens_per_s,
    )


def table(rows: Sequence[Row]) -> None:
    """One line per set-up: medians over the seeds."""
    lines = []
    for name in dict.fromkeys(row.setup for row in rows):
        mine = [row for row in rows if row.setup == name]
        steady, prompt = (median(mine, share) for share in ("steady_percent", "prompt_percent"))
        dollars = median(mine, "dollars_per_million")
        lines.append(
            (
                name,
                both(mine, "ttft_p50_s", "ttft_p90_s"),
                both(mine, "itl_p50_ms", "itl_p90_ms"),
                median(mine, "e2e_mean_s"),
                prompt,
                steady,
                dollars,
                dollars / (prompt / 100) if prompt >= 1 else None,
                dollars / (steady / 100) if steady >= 1 else None,
            )
        )
    columns = (
        "16 H200",
        "TTFT p50/p90 s",
        "ITL p50/p90 ms",
        "E2E s",
        "prompt %",
        "steady %",
        "$/M",
        "$/M prompt",
        "$/M steady",
    )
    report.table(f"{rows[0].traffic}: median of {len(mine)} cold starts", columns, lines)


def published(rows: Iterable[Row]) -> None:
    """The guide's fleet beside what was published of it: means."""
    lines = [
        (
            f"{row.setup}, prefill {row.prefill:,}/s",
            row.ttft_mean_s,
            row.itl_mean_ms,
            row.e2e_mean_s,
            *PUBLISHED[row.setup],
        )
        for row in rows
    ]
    columns = ("means", "TTFT s", "ITL ms", "E2E s", "published: TTFT s", "ITL ms", "E2E s")
    report.table("The guide's fleet at 45 requests/s of 5,000 in and 250 out", columns, lines)


def median(rows: Iterable[Row], figure: str) -> float:
    """Over some runs."""
    found = report.median(getattr(row, figure) for row in rows)
    assert found is not None
    return found


def both(rows: Sequence[Row], one: str, other: str) -> str:
    """Two medians side by side."""
    return f"{report.cell(float(median(rows, one)))} / {report.cell(float(median(rows, other)))}"


def main() -> None:
    parser = report.options(__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="cold starts per cell")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    seeds = range(1, 2 if args.smoke else 1 + args.seeds)
    until_s = 50.0 if args.smoke else DURATION_S
    prefills = PREFILLS[-1:] if args.smoke else PREFILLS
    shown = (SHORTEST,) if args.smoke else TRAFFIC
    of_guide = [(GUIDE, name, seed, prefill, until_s) for name in PUBLISHED for prefill in prefills for seed in seeds]
    others = [
        (traffic, name, seed, PRESET_PREFILL, until_s) for traffic in shown for name in traffic.setups for seed in seeds
    ]
    with ProcessPoolExecutor(args.workers) as executor:
        rows = list(executor.map(run, *zip(*of_guide, *others, strict=True)))
    published(row for row in rows[: len(of_guide)] if row.seed == seeds[0])
    for traffic in shown:
        table([row for row in rows[len(of_guide) :] if row.traffic == name_of(traffic)])
    report.save(args.json, rows)


if __name__ == "__main__":
    main()
