"""In how many legs: which rule, with shared prefixes and at loads that the pools were not sized for?

Virtual time: the real router and engine model. gpt-oss-120b on 12 H200: four prefill engines of one and two decode engines of four
accelerators, KV over 400 Gb/s per accelerator, caches cold at the start; beside it, the same accelerators as engines that do both. A
request is good with its first token within 2 s, and with 20 ms per further token on average.

    python -m benchmarks.legs
"""

from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from beaconry.apps.virtual_fleet import cells, run_cell
from beaconry.config.loading import load_yaml
from beaconry.sim.scenario import Scenario
from beaconry.workload.summary import Summary
from benchmarks import report

SEEDS = 2
TEXT = """\
apiVersion: beaconry/v1alpha1
kind: Scenario
metadata: {{name: legs}}
slo: {{ttftS: 2, itlS: 0.02}}
durationS: {until}
settleS: 200
warmupS: 10
seeds: {seeds}
service:
  model: {{uri: "hf://openai/gpt-oss-120b", name: m}}
  engine: {{type: sim, preset: gpt-oss-120b/h200}}
  pools: [{pools}]
  router: {{disaggregation: {{{rule}}}}}
workloads: [{{{workload}, arrivals: {{rate: {rate}}}}}]
"""
_DECODE = "{name: decode, role: decode, replicas: 2, engine: {type: sim, preset: gpt-oss-120b/h200x4}}"
_APART = f"{{name: prefill, role: prefill, replicas: 4}}, {_DECODE}"
_WIDE = "{name: engine, replicas: 3, engine: {type: sim, preset: gpt-oss-120b/h200x4}}"
RULES = {
    "auto": (_APART, ""),
    "auto, a ratio of 0.7": (_APART, "minUncachedRatio: 0.7"),
    "always": (_APART, "mode: always"),
    "together, 12 x 1": ("{name: engine, replicas: 12}", ""),
    "together, 3 x 4": (_WIDE, ""),
}
"""Pools, and the router's rule."""
WORKLOADS = {
    "prompts": ("type: prompts, promptTokens: [4000, 6000], outputTokens: [200, 300]", (12, 18, 24)),
    "prefixes": ("type: prompts, groups: 40, prefixTokens: [2000, 4000], promptTokens: [3000, 6000]", (12, 18, 24)),
    "conversations": ("type: sessions, groups: 20, prefixTokens: 4000, promptTokens: [500, 3000]", (6, 10, 14)),
    "agents": ("type: agents", (3, 5)),
}
"""Requests, conversations or runs per second: below, near and above what the prefill engines can compute."""


class Row(Struct, frozen=True, kw_only=True):
    """One rule on one workload at one rate."""

    workload: str
    rate: float
    rule: str
    requests: int
    good_per_s: float
    ttft_p50_ms: float
    ttft_p90_ms: float
    tpot_p90_ms: float
    hit_percent: float


def run(workload: str, rate: float, rule: str, seeds: int, until_s: float) -> Row:
    """All seeds of one cell, averaged."""
    pools, knobs = RULES[rule]
    what = WORKLOADS[workload][0]
    text = TEXT.format(until=until_s, seeds=seeds, pools=pools, rule=knobs, workload=what, rate=rate)
    scenario = load_yaml(text, Scenario, "benchmarks.legs")
    found = [run_cell(scenario, cell, Path())[0].summary for cell in cells(scenario)]
    return Row(
        workload=workload,
        rate=rate,
        rule=rule,
        requests=sum(summary.requests for summary in found),
        good_per_s=_mean(summary.goodput or 0.0 for summary in found),
        ttft_p50_ms=_mean(1e3 * _of(summary, "ttft_s", "p50") for summary in found),
        ttft_p90_ms=_mean(1e3 * _of(summary, "ttft_s", "p90") for summary in found),
        tpot_p90_ms=_mean(1e3 * _of(summary, "tpot_s", "p90") for summary in found),
        hit_percent=_mean(100 * (summary.hit_rate or 0.0) for summary in found),
    )


def main() -> None:
    parser = report.options(__doc__.partition("\n")[0])
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="only this one; may be repeated")
    args = parser.parse_args()
    rows: list[Row] = []
    for workload in args.workload or WORKLOADS:
        rates = WORKLOADS[workload][1]
        for rate in rates[-1:] if args.smoke else rates:
            seeds, until_s = (1, 20.0) if args.smoke else (SEEDS, 60.0)
            rows += [run(workload, rate, rule, seeds, until_s) for rule in RULES]
            columns = ("rule", "good/s", "TTFT p50 ms", "p90", "TPOT p90 ms", "hit %", "requests")
            shown = [
                (r.rule, r.good_per_s, r.ttft_p50_ms, r.ttft_p90_ms, r.tpot_p90_ms, r.hit_percent, r.requests)
                for r in rows[-len(RULES) :]
            ]
            report.table(f"{workload}, {rate}/s", columns, shown)
    report.save(args.json, rows)


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return sum(kept) / len(kept)


def _of(summary: Summary, name: str, quantile: str) -> float:
    distribution = getattr(summary, name)
    return 0.0 if distribution is None else float(getattr(distribution, quantile))


if __name__ == "__main__":
    main()
