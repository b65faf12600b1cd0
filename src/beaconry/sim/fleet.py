"""A fleet in virtual time: the real router, model engines and a plan of requests on one event heap.

The second interpreter of the router's effects, beside the asyncio driver: it carries requests to `engine_model` engines and brings
back their first bytes, usage and load samples, at the times at which these would happen. Network and gateway take no time. One seed
gives one result, and an hour of traffic takes seconds, so policies are compared over hundreds of cold starts.
"""

import heapq
from collections.abc import Callable, Mapping
from itertools import count

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.sequence import Sequence
from beaconry.router.effects import Answer, BreakStream, CancelLeg, Effect, StartLeg, WakeAt
from beaconry.router.facts import (
    EndpointSeen,
    Fact,
    LegFinished,
    LegStarted,
    LoadSampled,
    RequestArrived,
    TimerDue,
)
from beaconry.router.router import Router
from beaconry.sim.prompt import block_hashes
from beaconry.values.endpoint import Endpoint, LoadSample
from beaconry.values.errors import CallerError
from beaconry.values.request import Api, Request, Usage
from beaconry.workload.ideal import prompt_spans
from beaconry.workload.plan import Plan
from beaconry.workload.request import PlannedRequest, Span
from beaconry.workload.sample import Sample

ROUTER_BLOCK_TOKENS = 64
"""Tokens per block of `Request.prefix`, as the gateway makes them."""


class _Flight:
    """One planned request under way: its latest leg and what has come of it."""

    __slots__ = ("endpoint", "first_s", "leg", "planned", "sent_s")

    def __init__(self, planned: PlannedRequest, sent_s: float) -> None:
        self.planned = planned
        self.sent_s = sent_s
        self.first_s: float | None = None
        self.leg = 0
        self.endpoint = ""


class Fleet:
    """Engines behind a router, driven by `run` once.

    Invariants: `_legs` are the legs the router has started and not heard the end of; an engine has at most one step on the heap.
    """

    def __init__(self, router: Router, engines: Mapping[str, Engine], endpoints: Mapping[str, Endpoint]) -> None:
        """`engines` and `endpoints` have the same names. All endpoints must serve the same model."""
        self._router = router
        self._engines = dict(engines)
        self._endpoints = dict(endpoints)
        self._model = next(iter(endpoints.values())).model
        self._plan = Plan(())
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._now_s = 0.0
        self._stepping: set[str] = set()
        self._flights: dict[str, _Flight] = {}
        self._legs: dict[int, tuple[_Flight, str]] = {}
        self._samples: list[Sample] = []

    def run(self, plan: Plan, *, until_s: float, scrape_s: float = 1.0) -> list[Sample]:
        """Send the plan's requests when they are due and go on until all have ended, or until `until_s`.

        Returns one sample per request sent, in order of their ends; what has not ended by `until_s` is an error "unfinished".
        """
        self._plan = plan
        for endpoint in self._endpoints.values():
            self._tell(EndpointSeen(endpoint))
        self._at(0.0, lambda: self._scrape(scrape_s))
        while True:
            due = plan.peek()
            if due is None and not self._flights:
                break
            next_s = self._heap[0][0]
            if due is not None and due.at_s <= next_s:
                if due.at_s > until_s:
                    break
                self._now_s = max(self._now_s, due.at_s)
                self._send(plan.take())
                continue
            if next_s > until_s:
                break
            self._now_s, _, happen = heapq.heappop(self._heap)
            happen()
        for flight in list(self._flights.values()):
            self._end(flight, error="unfinished")
        return self._samples

    def check(self) -> None:
        """Raise InternalError if the router or an engine is inconsistent."""
        self._router.check()
        for engine in self._engines.values():
            engine.check()

    def _at(self, at_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (at_s, next(self._numbers), happen))

    def _tell(self, fact: Fact) -> None:
        for effect in self._router.handle(fact, self._now_s):
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case StartLeg():
                self._start(effect)
            case CancelLeg(leg=leg):
                _, name = self._legs.pop(leg)
                self._engines[name].abort(str(leg), self._now_s)
            case WakeAt(at_s=at_s):
                self._at(at_s, lambda: self._tell(TimerDue()))
            case Answer(request_id=request_id, outcome=outcome) | BreakStream(request_id=request_id, outcome=outcome):
                self._end(self._flights[request_id], error=outcome.value)
            case _:
                pass  # Ended repeats what the effects before it have said

    # -- requests

    def _send(self, planned: PlannedRequest) -> None:
        request = Request(
            id=str(planned.index),
            model=self._model,
            api=Api.CHAT,
            arrived_s=self._now_s,
            prompt_tokens=planned.prompt_tokens,
            prefix=tuple(block_hashes(prompt_spans(planned), ROUTER_BLOCK_TOKENS)),
            block_tokens=ROUTER_BLOCK_TOKENS,
            output_tokens=planned.output_tokens,
            stream=True,
            session=planned.session,
        )
        self._flights[request.id] = _Flight(planned, self._now_s)
        self._tell(RequestArrived(request))

    def _start(self, effect: StartLeg) -> None:
        flight, name = self._flights[effect.request_id], effect.endpoint.name
        flight.leg, flight.endpoint = effect.leg, name
        self._legs[effect.leg] = (flight, name)
        planned, engine = flight.planned, self._engines[name]
        spans = (*prompt_spans(planned), Span(id=planned.reply_id, tokens=planned.output_tokens))
        sequence = Sequence(
            str(effect.leg),
            planned.prompt_tokens,
            planned.output_tokens,
            hashes=block_hashes(spans, engine.settings.block_tokens),
        )
        try:
            engine.submit(sequence, self._now_s)
        except CallerError:
            self._legs.pop(effect.leg)
            self._at(self._now_s, lambda: self._refused(flight, effect.leg))
            return
        if name not in self._stepping:
            # an idle engine admits together what arrives at the same moment
            self._stepping.add(name)
            self._at(self._now_s, lambda: self._begin_step(name))

    def _refused(self, flight: _Flight, leg: int) -> None:
        self._tell(LegFinished(leg, status=400))
        self._end(flight, error="status 400")

    def _end(self, flight: _Flight, error: str | None = None, usage: Usage | None = None) -> None:
        planned = flight.planned
        if self._flights.pop(str(planned.index), None) is None:
            return
        self._samples.append(
            Sample(
                index=planned.index,
                planned_s=planned.at_s,
                sent_s=flight.sent_s,
                first_s=flight.first_s,
                end_s=self._now_s,
                prompt_tokens=usage.prompt_tokens if usage else None,
                cached_tokens=usage.cached_tokens if usage else None,
                output_tokens=usage.completion_tokens if usage else None,
                planned_prompt_tokens=planned.prompt_tokens,
                planned_output_tokens=planned.output_tokens,
                ideal_cached_tokens=planned.ideal_cached_tokens,
                error=error,
                endpoint=flight.endpoint or None,
                session=planned.session,
                turn=planned.turn,
            )
        )

    # -- engines

    def _begin_step(self, name: str) -> None:
        duration_s = self._engines[name].begin_step(self._now_s)
        if duration_s is None:
            self._stepping.discard(name)
        else:
            self._at(self._now_s + duration_s, lambda: self._finish_step(name))

    def _finish_step(self, name: str) -> None:
        result = self._engines[name].finish_step(self._now_s)
        for sequence in result.started:
            flight, _ = self._legs[int(sequence.id)]
            flight.first_s = self._now_s
            self._tell(LegStarted(flight.leg))
        for sequence in result.finished:
            flight, _ = self._legs.pop(int(sequence.id))
            usage = Usage(
                prompt_tokens=sequence.prompt_tokens,
                completion_tokens=sequence.output_tokens,
                cached_tokens=sequence.cached_tokens,
            )
            self._tell(LegFinished(flight.leg, usage=usage))
            self._end(flight, usage=usage)
            self._plan.answered(flight.planned, self._now_s)
        self._begin_step(name)

    def _scrape(self, every_s: float) -> None:
        for name, engine in self._engines.items():
            statistics = engine.statistics()
            sample = LoadSample(
                at_s=self._now_s,
                running=statistics.running,
                waiting=statistics.waiting,
                kv_usage=statistics.kv_usage,
                kv_blocks=engine.settings.num_blocks,
                block_tokens=engine.settings.block_tokens,
            )
            self._tell(LoadSampled(name, sample))
        self._at(self._now_s + every_s, lambda: self._scrape(every_s))
