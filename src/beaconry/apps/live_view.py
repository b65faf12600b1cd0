"""What `beaconry up` shows: one screen that is renewed twice a second, or plain lines where there is no terminal.

`Watch` turns the router's statistics into rows; rates and latencies are those of the last `WINDOW_S`, so they tell what happens now.
Rendering knows rows only.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from beaconry.io.children.supervisor import ProcessState, ProcessStatistics
from beaconry.router.statistics import Distribution, EndpointStatistics, RouterStatistics

if TYPE_CHECKING:  # imported where a screen is drawn: without a terminal it would only delay the start
    from rich.console import Group

WINDOW_S = 10.0
SHOWN_NEWS = 6


class Row(Struct, frozen=True, kw_only=True):
    """One engine, or the whole fleet. None where nothing is known or nothing happened."""

    name: str
    state: str
    in_flight: int = 0
    waiting: int | None = None
    kv_usage: float | None = None
    view: str | None = None
    """How its cache is seen: exact or approximate; of the fleet, how many are exact."""
    hit_rate: float | None = None
    """Cached over prompt tokens, as the engines report them."""
    ttft_s: float | None = None
    """Median."""
    requests_per_s: float = 0.0
    tokens_per_s: float = 0.0
    """Output tokens of answers that have ended."""


class Screen(Struct, frozen=True, kw_only=True):
    """All that is shown at one moment."""

    engines: tuple[Row, ...]
    fleet: Row
    totals: dict[str, int]
    """Requests that have ended, by outcome, without zeros; and retries."""
    news: tuple[str, ...]
    """What happened to the engines last, oldest first."""


class Watch:
    """Turns successive statistics of one model's fleet into screens."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._past: deque[RouterStatistics] = deque()
        """Oldest first; one is as old as `WINDOW_S`, if the watch runs for so long."""
        self._news: deque[str] = deque(maxlen=SHOWN_NEWS)

    def note(self, line: str) -> None:
        """Add to the news."""
        self._news.append(line)

    def look(self, now: RouterStatistics, processes: Sequence[ProcessStatistics]) -> Screen:
        """Take statistics in; return what to show."""
        self._past.append(now)
        while len(self._past) > 2 and self._past[1].at_s <= now.at_s - WINDOW_S:
            self._past.popleft()
        then = self._past[0]
        elapsed_s = max(now.at_s - then.at_s, 1e-3)
        before = {one.endpoint.name: one for one in then.endpoints}
        current = {one.endpoint.name: one for one in now.endpoints}
        engines = tuple(
            _engine_row(process, current.get(process.name), before.get(process.name), elapsed_s)
            for process in processes
        )
        return Screen(
            engines=engines,
            fleet=self._fleet_row(engines, now, then, elapsed_s),
            totals=totals(now),
            news=tuple(self._news),
        )

    def _fleet_row(
        self, engines: Sequence[Row], now: RouterStatistics, then: RouterStatistics, elapsed_s: float
    ) -> Row:
        state = "draining" if now.draining else f"{sum(row.state == 'ready' for row in engines)}/{len(engines)} ready"
        waiting = [row.waiting for row in engines if row.waiting is not None]
        row = Row(
            name=self._model,
            state=state,
            in_flight=now.in_flight,
            waiting=sum(waiting) if waiting else None,
            view=f"{sum(row.view == 'exact' for row in engines)}/{len(engines)} exact",
        )
        after, before = now.models.get(self._model), then.models.get(self._model)
        if after is None or before is None:
            return row
        ended = sum(after.outcomes.values()) - sum(before.outcomes.values())
        return Row(
            name=row.name,
            state=row.state,
            in_flight=row.in_flight,
            waiting=row.waiting,
            view=row.view,
            hit_rate=_ratio(
                after.cached_tokens.total - before.cached_tokens.total,
                after.input_tokens.total - before.input_tokens.total,
            ),
            ttft_s=_since(after.ttft, before.ttft).quantile(0.5),
            requests_per_s=ended / elapsed_s,
            tokens_per_s=(after.output_tokens.total - before.output_tokens.total) / elapsed_s,
        )


def totals(now: RouterStatistics) -> dict[str, int]:
    """Requests that have ended, by outcome, without zeros; and retries."""
    counts: dict[str, int] = {}
    for model in now.models.values():
        for outcome, count in model.outcomes.items():
            counts[outcome.value] = counts.get(outcome.value, 0) + count
    counts["refused"] = counts.get("refused", 0) + now.refused
    counts["retries"] = now.retries
    return {name: count for name, count in counts.items() if count}


def plain_line(screen: Screen) -> str:
    """The fleet in one line."""
    fleet = screen.fleet
    parts = [
        fleet.state,
        f"{fleet.in_flight} in flight",
        f"{fleet.requests_per_s:.1f} requests/s",
        f"{fleet.tokens_per_s:.0f} tokens/s",
        f"prefix hits {_percent(fleet.hit_rate)}",
        f"TTFT p50 {_seconds(fleet.ttft_s)}",
        *(f"{name} {count}" for name, count in screen.totals.items()),
    ]
    return ", ".join(parts)


def render(screen: Screen, address: str) -> "Group":
    """The screen for a terminal."""
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(title=f"{screen.fleet.name} at {address}", title_justify="left", show_footer=True)
    last = screen.fleet
    table.add_column("engine", "fleet", no_wrap=True)
    table.add_column("state", last.state)
    headings = ("in flight", "waiting", "KV use", "view", "prefix hits", "TTFT p50", "requests/s", "tokens/s")
    for heading, figure in zip(headings, _figures(last), strict=True):
        table.add_column(heading, figure, justify="right")
    for row in screen.engines:
        style = None if row.state == "ready" else "yellow"
        table.add_row(row.name, row.state, *_figures(row), style=style)
    ended = ", ".join(f"{name} {count}" for name, count in screen.totals.items()) or "no requests yet"
    lines = [Text(f"so far: {ended}"), *(Text(line, style="yellow") for line in screen.news)]
    return Group(table, *lines, Text("Ctrl-C finishes what runs and stops everything.", style="dim"))


def _engine_row(
    process: ProcessStatistics, now: EndpointStatistics | None, then: EndpointStatistics | None, elapsed_s: float
) -> Row:
    if now is None or process.state is not ProcessState.READY:
        return Row(name=process.name, state="restarting" if process.crashes else process.state.value)
    if then is None or then.dispatched > now.dispatched:  # it has been restarted: its counters began anew
        then = now
    return Row(
        name=process.name,
        state=now.state,
        in_flight=now.prefilling + now.decoding,
        waiting=now.sample.waiting if now.sample else None,
        kv_usage=now.sample.kv_usage if now.sample else None,
        view="exact" if now.exact else "approximate",
        hit_rate=_ratio(now.cached_tokens - then.cached_tokens, now.prompt_tokens - then.prompt_tokens),
        ttft_s=_since(now.ttft, then.ttft).quantile(0.5),
        requests_per_s=(now.dispatched - then.dispatched) / elapsed_s,
        tokens_per_s=(now.output_tokens - then.output_tokens) / elapsed_s,
    )


def _since(now: Distribution, then: Distribution) -> Distribution:
    counts = tuple(after - before for after, before in zip(now.counts, then.counts, strict=True))
    return Distribution(bounds=now.bounds, counts=counts, total=now.total - then.total)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _figures(row: Row) -> tuple[str, ...]:
    return (
        str(row.in_flight),
        "-" if row.waiting is None else str(row.waiting),
        _percent(row.kv_usage),
        row.view or "-",
        _percent(row.hit_rate),
        _seconds(row.ttft_s),
        f"{row.requests_per_s:.1f}",
        f"{row.tokens_per_s:.0f}",
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"
