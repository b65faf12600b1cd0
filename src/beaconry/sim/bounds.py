"""What traffic asks for, and the most that one replica can give: what no simulation is needed to rule out.

A bound is optimistic on purpose. Endless caches, no queues, perfect batches, and prefill and decode overlapping for nothing: a fleet that
is too small even so need not be simulated.
"""

from collections.abc import Iterable

from msgspec import Struct

from beaconry.engine_model.step_time import StepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.workload.plan import Plan

_MOST_REQUESTS = 20_000
_LEAST_S = 1e-9
_NOMINAL_TTFT_S, _NOMINAL_ITL_S = 0.5, 0.02
"""When a reply comes while demand is measured: it only decides when later turns are due."""


class Demand(Struct, frozen=True, kw_only=True):
    """Traffic in means."""

    requests_per_s: float
    prompt_tokens: float
    uncached_tokens: float
    """Of the prompt tokens, those that an endless cache would not have."""
    output_tokens: float


def demand_of(plan: Plan) -> Demand:
    """Read a plan as if every reply came soon. Raises ValueError for a plan without requests."""
    count = prompt = uncached = output = 0
    last_s = 0.0
    while count < _MOST_REQUESTS and plan.peek() is not None:
        request = plan.take()
        count += 1
        prompt += request.prompt_tokens
        uncached += request.prompt_tokens - request.ideal_cached_tokens
        output += request.output_tokens
        last_s = max(last_s, request.at_s)
        plan.answered(request, request.at_s + _NOMINAL_TTFT_S + _NOMINAL_ITL_S * request.output_tokens)
    if not count or last_s <= 0.0:
        raise ValueError("the workloads make no traffic to plan for")
    return Demand(
        requests_per_s=count / last_s,
        prompt_tokens=prompt / count,
        uncached_tokens=uncached / count,
        output_tokens=output / count,
    )


def most_per_s(demand: Demand, settings: EngineSettings, step_time: StepTime, itl_s: float | None) -> float:
    """Requests per second that no replica can exceed; 0 if it cannot keep the target for one request alone."""
    return min(decodes_per_s(demand, settings, step_time, itl_s), prefills_per_s(demand, settings, step_time))


def decodes_per_s(demand: Demand, settings: EngineSettings, step_time: StepTime, itl_s: float | None) -> float:
    """Answers per second that no replica can exceed without computing a prompt; 0 if it cannot keep the target for one alone."""
    context = demand.prompt_tokens + demand.output_tokens / 2
    batch = _largest_batch(context, settings, step_time, itl_s)
    if not batch:
        return 0.0
    return batch / max(demand.output_tokens * step_time.seconds(batch, batch * context, 0, 0.0), _LEAST_S)


def prefills_per_s(demand: Demand, settings: EngineSettings, step_time: StepTime) -> float:
    """Prompts per second that no replica can exceed without decoding."""
    return 1.0 / max(prefill_s(demand.uncached_tokens, settings, step_time), _LEAST_S)


def prefill_s(tokens: float, settings: EngineSettings, step_time: StepTime) -> float:
    """Time that prompt tokens take of a full step, their attention left out."""
    chunk = settings.max_num_batched_tokens
    return tokens / chunk * (step_time.seconds(0, 0.0, chunk, 0.0) - step_time.seconds(0, 0.0, 0, 0.0))


def _largest_batch(context: float, settings: EngineSettings, step_time: StepTime, itl_s: float | None) -> int:
    """Sequences that decode at once within the target. KV memory does not bound it: prompts may share theirs."""
    if itl_s is None:
        return settings.max_num_seqs
    fits: Iterable[int] = (
        batch
        for batch in range(settings.max_num_seqs, 0, -1)
        if step_time.seconds(batch, batch * context, 0, 0.0) <= itl_s
    )
    return next(iter(fits), 0)
