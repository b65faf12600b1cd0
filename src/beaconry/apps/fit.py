"""`beaconry fit`: from bench results of an engine to a preset by which `engine`, specs and scenarios simulate it."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from beaconry.engine_model.fitting import Fit, Replayed, Served, fit, replay
from beaconry.engine_model.preset_file import PresetFile, StepCosts, write_preset
from beaconry.engine_model.presets import Provenance
from beaconry.engine_model.values import EngineSettings
from beaconry.values.errors import OperatorError
from beaconry.workload.distribution import distribution
from beaconry.workload.result import Result, decode_result
from beaconry.workload.wording import in_short

SHORTEST_STEP_S = 1e-6
"""Where the fit finds none: a preset must not stand still."""
CACHED_SHARE = 0.05
"""Of prompt tokens: more of them found in caches make the fit doubtful, since what they attend to is not replayed."""
BUSY_CLIENT = 0.8
"""Share of a core: beyond it the client's own delays are in the latencies."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    add = parser.add_argument
    add(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULT.json",
        help="written by `beaconry bench --json`; several runs of one engine at different loads tell more than one",
    )
    add("--out", type=Path, metavar="PRESET.yaml", help="write the preset there")
    add("--model", metavar="NAME", help="the preset's model (default: that of the first result)")
    add("--blocks", type=int, help="KV blocks the engine has (default: unknown; as many as the runs need)")
    add("--block-size", type=int, default=16, help="tokens per block (default: %(default)s)")
    add("--max-num-seqs", type=int, default=256, help="the engine's limit of running sequences (default: %(default)s)")
    add(
        "--max-num-batched-tokens",
        type=int,
        default=8192,
        help="the engine's token budget per step (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Fit, print and write. Raises OperatorError for results that tell nothing."""
    results = [read_result(path) for path in args.results]
    requests = [one for number, result in enumerate(results) for one in served(result, str(args.results[number]))]
    settings = _settings(args, requests)
    found = fit(requests, settings)
    replayed = replay(requests, settings, found.step_time, found.request_s)
    warnings = (*_doubts(results, args), *found.warnings)
    _print(found, replayed, warnings)
    if args.out is not None:
        file = preset_file(
            found, settings, args.model or results[0].model, ", ".join(path.name for path in args.results)
        )
        try:
            args.out.write_text(write_preset(file), encoding="utf-8")
        except OSError as error:
            raise OperatorError(f"--out {args.out}: cannot write: {error.strerror}") from error
        print(f"Written to {args.out}. Try it: beaconry engine --preset {args.out}")
    return 0


def read_result(path: Path) -> Result:
    """Read a result file. OperatorError if it is none, or has no single requests."""
    try:
        result = decode_result(path.read_bytes(), str(path))
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}; give a file written by `beaconry bench --json`") from error
    if not result.timings:
        raise OperatorError(f"{path}: has no times of single requests; run the bench again with this version")
    return result


def served(result: Result, run_name: str) -> list[Served]:
    """A run's requests. Those of one endpoint were on one engine, and different runs are as different engines."""
    return [
        Served(
            engine=f"{run_name} {timing.endpoint}",
            sent_s=timing.sent_s,
            first_s=timing.first_s,
            end_s=timing.end_s,
            prompt_tokens=max(1, timing.prompt_tokens - timing.cached_tokens),
            output_tokens=timing.output_tokens,
        )
        for timing in result.timings
    ]


def preset_file(found: Fit, settings: EngineSettings, model: str, source: str) -> PresetFile:
    """What was found, as a preset; coefficients to five digits, more than any run tells."""
    step = found.step_time
    costs = {
        name: float(f"{getattr(step, name):.5g}")
        for name in StepCosts.__struct_fields__
        if getattr(step, name) not in {0.0, float("inf")}
    }
    return PresetFile(
        api_version="beaconry/v1alpha1",
        kind="EnginePreset",
        model=model,
        step_time=StepCosts(**{"fixed_s": SHORTEST_STEP_S, **costs}),
        request_s=float(f"{found.request_s:.5g}"),
        blocks=settings.num_blocks,
        block_tokens=settings.block_tokens,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        provenance=Provenance.MEASURED,
        source=f"beaconry fit {source}: {found.requests} requests, up to {found.most_running} decoding at once and "
        f"{found.longest_prompt} prompt tokens; single TTFTs off by {found.ttft_error:.1%}, times per token by {found.tpot_error:.1%}",
    )


def _settings(args: argparse.Namespace, requests: list[Served]) -> EngineSettings:
    """The engine's limits; without `--blocks` memory for as many of the longest requests as may run."""
    longest = max(one.prompt_tokens + one.output_tokens for one in requests)
    blocks = args.blocks or args.max_num_seqs * (longest // args.block_size + 1)
    return EngineSettings(
        num_blocks=blocks,
        block_tokens=args.block_size,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        prefix_caching=False,
    )


def _doubts(results: list[Result], args: argparse.Namespace) -> list[str]:
    """What is wrong with the runs themselves."""
    doubts = []
    timings = [timing for result in results for timing in result.timings]
    prompts = sum(timing.prompt_tokens for timing in timings)
    cached = sum(timing.cached_tokens for timing in timings)
    if cached > CACHED_SHARE * prompts:
        doubts.append(
            f"{cached / prompts:.0%} of the prompt tokens were cached; use prompts that differ, without --groups"
        )
    if failed := sum(result.summary.failed for result in results):
        doubts.append(f"{failed} requests failed: what they cost the engine is not replayed")
    if any((result.client_cpu or 0.0) > BUSY_CLIENT for result in results):
        doubts.append("the bench client was busy all the time: its own delays are in the figures; lower the rate")
    if args.blocks is None:
        doubts.append("the KV memory is not known, and taken to be ample: give --blocks (vLLM logs it at its start)")
    return doubts


def _print(found: Fit, replayed: list[Replayed], warnings: tuple[str, ...]) -> None:
    console = Console()
    terms = Table("time", Column("seconds", justify="right"), Column("+-", justify="right"), title="What a step costs")
    for term in found.terms:
        terms.add_row(term.name, f"{term.value:.3g}", "unknown" if term.error == float("inf") else f"{term.error:.1g}")
    console.print(terms)
    points = ("mean", "p50", "p90", "p99")
    quality = Table(
        "ms", "", *(Column(point, justify="right") for point in points), title="Measured, and replayed with it"
    )
    tokens = [one for one in replayed if one.served.streamed]
    for name, measured, simulated in (
        ("TTFT", [one.served.ttft_s for one in replayed], [one.ttft_s for one in replayed]),
        ("TPOT", [one.served.tpot_s for one in tokens], [one.tpot_s for one in tokens]),
    ):
        for label, values in (("measured", measured), ("replayed", simulated)):
            spread = distribution(values)
            if spread is not None:
                quality.add_row(name, label, *(in_short(1e3 * getattr(spread, point)) for point in points))
    console.print(quality)
    console.print(
        f"{found.requests} requests, at most {found.most_running} decoding at once, prompts of up to {found.longest_prompt} tokens: beyond "
        f"that it is extrapolated. Single TTFTs are off by {found.ttft_error:.1%}, times per token by {found.tpot_error:.1%} (median).",
        highlight=False,
    )
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False)
