"""What the live view makes of the router's statistics."""

import io

import pytest
from msgspec import structs
from rich.console import Console

from beaconry.apps.live_view import WINDOW_S, Watch, plain_line, render
from beaconry.io.children.supervisor import ProcessState, ProcessStatistics
from beaconry.router.statistics import Distribution, EndpointStatistics, ModelStatistics, RouterStatistics
from beaconry.values.endpoint import Endpoint, LoadSample
from beaconry.values.outcome import Outcome


def distribution(*counts, total=0.0):
    return Distribution(bounds=(0.1, 1.0), counts=counts or (0, 0, 0), total=total)


def endpoint(name, *, dispatched=0, prompt=0, cached=0, output=0, ttft=(0, 0, 0), **more):
    return EndpointStatistics(
        endpoint=Endpoint(name=name, host="h", port=1, model="m"),
        state=more.get("state", "ready"),
        prefilling=more.get("prefilling", 0),
        prefill_tokens=0,
        decoding=more.get("decoding", 0),
        context_tokens=0,
        sample=more.get("sample"),
        dispatched=dispatched,
        failed=0,
        prompt_tokens=prompt,
        cached_tokens=cached,
        predicted_cached_tokens=0,
        output_tokens=output,
        ttft=distribution(*ttft),
    )


def router(at_s, *endpoints, completed=0, prompt=0.0, cached=0.0, output=0.0, ttft=(0, 0, 0), **more):
    model = ModelStatistics(
        outcomes={Outcome.COMPLETED: completed, Outcome.CLIENT_GONE: 0},
        running=0,
        ttft=distribution(*ttft),
        itl=distribution(),
        e2e=distribution(),
        input_tokens=distribution(total=prompt),
        output_tokens=distribution(total=output),
        cached_tokens=distribution(total=cached),
    )
    return RouterStatistics(
        at_s=at_s,
        endpoints=endpoints,
        models={"m": model},
        refused=more.get("refused", 0),
        retries=more.get("retries", 0),
        recalls=more.get("recalls", 0),
        in_flight=more.get("in_flight", 0),
        draining=more.get("draining", False),
    )


def process(name, state=ProcessState.READY, crashes=0):
    return ProcessStatistics(name=name, state=state, crashes=crashes)


def test_rates_are_those_between_two_looks():
    watch = Watch("m")
    watch.look(router(100.0, endpoint("a", dispatched=10), completed=10), [process("a")])
    now = router(
        104.0,
        endpoint("a", dispatched=20, prompt=1000, cached=250, output=400, ttft=(0, 4, 0), prefilling=2, decoding=3),
        completed=18,
        prompt=1000.0,
        cached=500.0,
        output=300.0,
        ttft=(4, 0, 0),
        in_flight=5,
    )
    screen = watch.look(now, [process("a")])
    (row,) = screen.engines
    assert (row.in_flight, row.requests_per_s, row.tokens_per_s, row.hit_rate) == (5, 2.5, 100.0, 0.25)
    assert row.ttft_s == pytest.approx(0.55)
    fleet = screen.fleet
    assert (fleet.state, fleet.in_flight, fleet.requests_per_s, fleet.tokens_per_s) == ("1/1 ready", 5, 2.0, 75.0)
    assert (fleet.hit_rate, fleet.ttft_s) == (0.5, pytest.approx(0.05))


def test_each_engine_shows_how_its_cache_is_seen_and_the_fleet_how_many_are_seen_exactly():
    now = router(1.0, structs.replace(endpoint("a"), exact=True), endpoint("b"))
    screen = Watch("m").look(now, [process("a"), process("b"), process("c", ProcessState.STARTING)])
    assert [row.view for row in screen.engines] == ["exact", "approximate", None]
    assert screen.fleet.view == "1/3 exact"
    console = Console(file=io.StringIO(), width=160)
    console.print(render(screen, "http://x"))
    assert "approximate" in console.file.getvalue()


def test_what_is_older_than_the_window_no_longer_counts():
    watch = Watch("m")
    watch.look(router(0.0, endpoint("a")), [process("a")])
    watch.look(router(1.0, endpoint("a", dispatched=100)), [process("a")])
    screen = watch.look(router(1.0 + WINDOW_S, endpoint("a", dispatched=100)), [process("a")])
    assert screen.engines[0].requests_per_s == 0.0


def test_a_restarted_engine_whose_counters_began_anew_shows_no_negative_rate():
    watch = Watch("m")
    watch.look(router(0.0, endpoint("a", dispatched=100, prompt=100)), [process("a")])
    row = watch.look(router(5.0, endpoint("a", dispatched=3, prompt=3)), [process("a", crashes=1)]).engines[0]
    assert (row.requests_per_s, row.hit_rate) == (0.0, None)


@pytest.mark.parametrize(
    ("state", "crashes", "shown"),
    [
        (ProcessState.STARTING, 0, "starting"),
        (ProcessState.WAITING, 1, "restarting"),
        (ProcessState.STARTING, 2, "restarting"),
        (ProcessState.READY, 2, "ejected"),
    ],
)
def test_an_engine_that_does_not_run_shows_so(state, crashes, shown):
    screen = Watch("m").look(router(0.0, endpoint("a", state="ejected")), [process("a", state, crashes)])
    assert screen.engines[0].state == shown
    assert screen.fleet.state == "0/1 ready"


def test_the_engines_own_figures_come_from_the_last_scrape():
    sample = LoadSample(at_s=0.0, waiting=7, kv_usage=0.25)
    screen = Watch("m").look(router(0.0, endpoint("a", sample=sample), endpoint("b")), [process("a"), process("b")])
    assert [(row.waiting, row.kv_usage) for row in screen.engines] == [(7, 0.25), (None, None)]
    assert screen.fleet.waiting == 7


def test_totals_leave_zeros_out_and_add_what_never_reached_a_model():
    screen = Watch("m").look(router(0.0, completed=2, refused=3, retries=1), [])
    assert screen.totals == {"completed": 2, "refused": 3, "retries": 1}


def test_a_plain_line_says_it_all():
    watch = Watch("m")
    watch.look(router(0.0, endpoint("a")), [process("a")])
    now = router(5.0, endpoint("a"), completed=5, prompt=100.0, cached=40.0, output=50.0, ttft=(0, 0, 5), in_flight=2)
    assert plain_line(watch.look(now, [process("a")])) == (
        "1/1 ready, 2 in flight, 1.0 requests/s, 10 tokens/s, prefix hits 40 %, TTFT p50 1.0 s, completed 5"
    )


def test_the_screen_is_drawn_with_engines_fleet_totals_and_news():
    watch = Watch("m")
    watch.note("12:00:00 a ended: exit code 3")
    console = Console(file=io.StringIO(), width=110)
    console.print(render(watch.look(router(0.0, endpoint("a"), in_flight=9), [process("a")]), "http://h:1"))
    text = console.file.getvalue()
    for part in ("m at http://h:1", "engine", "fleet", "1/1 ready", " 9 ", "no requests yet", "a ended: exit code 3"):
        assert part in text
