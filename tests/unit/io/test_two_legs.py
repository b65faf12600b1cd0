"""Both legs of a request are visible: in the access log, in debug headers, and in what `--explain` prints."""

import asyncio
import json
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace
from rich.console import Console

from beaconry.apps.explanation import print_explanation
from beaconry.io.access_log import AccessLog
from beaconry.io.relay import debug_headers
from beaconry.router.effects import Ended, StartLeg
from beaconry.sim.fleet import Explained
from beaconry.values.candidate import Candidate
from beaconry.values.decision import Decision, Ranking
from beaconry.values.endpoint import Endpoint, Role
from beaconry.values.outcome import Outcome
from beaconry.values.stage import Stage

PREFILL = Endpoint(name="prefill-0", host="h", port=1, model="m", role=Role.PREFILL)
DECODE = Endpoint(name="decode-0", host="h", port=2, model="m", role=Role.DECODE)


def placement(stage: Stage) -> StartLeg:
    endpoint = PREFILL if stage is Stage.PREFILL else DECODE
    legs = {"source": "prefill-0", "prefill_s": 0.25} if stage is Stage.DECODE else {}
    decision = Decision(
        endpoint=endpoint,
        policy="expected-cost",
        candidates=(Candidate(endpoint=endpoint, stage=stage),),
        ranking=Ranking(winner=0, why="the only one"),
        stage=stage,
        plan="uncached-prompt",
        **legs,
    )
    return StartLeg("r", 1, endpoint, decision, stage, PREFILL if stage is Stage.DECODE else None)


def test_debug_headers_name_both_endpoints_and_the_reason():
    headers = dict(debug_headers(placement(Stage.DECODE), 0.5))
    assert headers[b"x-beaconry-endpoint"] == b"decode-0"
    assert headers[b"x-beaconry-prefill-endpoint"] == b"prefill-0"
    assert headers[b"x-beaconry-prefill-ms"] == b"250.0"
    assert headers[b"x-beaconry-plan"] == b"uncached-prompt"
    assert b"x-beaconry-prefill-endpoint" not in dict(debug_headers(placement(Stage.WHOLE), 0.5))


def test_debug_headers_tell_how_long_a_request_waited_and_for_what():
    start = placement(Stage.WHOLE)
    waited = replace(start.decision, queued_s=0.125, waited_for="capacity")
    headers = dict(debug_headers(replace(start, decision=waited), 0.5))
    assert (headers[b"x-beaconry-queued-ms"], headers[b"x-beaconry-waited-for"]) == (b"125.0", b"capacity")
    assert b"x-beaconry-queued-ms" not in dict(debug_headers(start, 0.5))


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (Stage.PREFILL, "prefill-0 (expected-cost; prefill: uncached-prompt)"),
        (Stage.DECODE, "decode-0 (expected-cost; decode, prefilled by prefill-0 in 250.0 ms: uncached-prompt)"),
        (Stage.WHOLE, "decode-0 (expected-cost; whole: uncached-prompt)"),
    ],
)
def test_an_explanation_says_which_leg_it_is_of(stage: Stage, said: str):
    console = Console(width=200, file=StringIO(), record=True)
    print_explanation(Explained(at_s=1.0, front=0, decision=placement(stage).decision), 7, console)
    assert f"request 7 at 1.000 s: {said}" in console.export_text()


def test_the_access_log_names_both_endpoints(tmp_path: Path):
    loop = asyncio.new_event_loop()
    log = AccessLog(str(tmp_path / "log"), loop)
    exchange, parsed = SimpleNamespace(path="/v1/completions"), SimpleNamespace(model="m", asked_model="m", stream=True)
    relay = SimpleNamespace(
        placement=placement(Stage.DECODE),
        parsed=parsed,
        exchange=exchange,
        usage=None,
        request=None,
        status=200,
        client_id=None,
    )
    log.write(relay, Ended(request_id="r", outcome=Outcome.COMPLETED, attempts=2, e2e_s=1.0))
    log.close()
    loop.close()
    line = json.loads((tmp_path / "log").read_text())
    assert (line["endpoint"], line["prefill_endpoint"], line["prefill_ms"]) == ("decode-0", "prefill-0", 250.0)
    assert (line["plan"], line["attempts"]) == ("uncached-prompt", 2)
