"""A fleet in virtual time: the real router, model engines and a plan of requests on one event heap.

The second interpreter of the router's effects, beside the asyncio driver: it carries requests to `engine_model` engines and brings
back their first bytes, usage, load samples and KV events, at the times at which these would happen. One seed gives one result, and an
hour of traffic takes seconds, so policies are compared over hundreds of cold starts.

Several router replicas share the engines: requests are spread over them in turn, and each sees its own traffic only, besides what
the engines tell (`news.py`). What goes wrong is `outages.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from random import Random

from msgspec import Struct
from msgspec.structs import replace

from beaconry.engine_model.engine import Engine
from beaconry.engine_model.values import StepResult
from beaconry.router.effects import Answer, BreakStream, CancelLeg, Effect, StartLeg, WakeAt
from beaconry.router.facts import (
    ClientLeft,
    EndpointGone,
    EndpointSeen,
    Fact,
    Fault,
    LegFailed,
    LegFinished,
    LegProgressed,
    LegStarted,
    RequestArrived,
    TimerDue,
)
from beaconry.router.router import Router
from beaconry.sim.conditions import Conditions
from beaconry.sim.flight import Flight, Front, Kept, Leg, usage_of
from beaconry.sim.heap import EventHeap
from beaconry.sim.host import Host, Life
from beaconry.sim.news import News
from beaconry.sim.outages import schedule
from beaconry.sim.recorder import Recorder
from beaconry.sim.transfers import Transfers
from beaconry.values.decision import Decision
from beaconry.values.endpoint import Endpoint
from beaconry.values.errors import CallerError, InternalError
from beaconry.values.request import Api, Request, Usage
from beaconry.values.stage import Stage
from beaconry.workload.plan import Plan
from beaconry.workload.request import PlannedRequest
from beaconry.workload.sample import Sample

ROUTER_BLOCK_TOKENS = 64
"""Tokens per block of `Request.prefix`, as the gateway makes them."""
CLIENT_TIMEOUT = "client-timeout"
"""The error of a request whose client gave up."""
PROGRESS_S = 10.0
"""Between two reports that an answer goes on: well within any sensible idle deadline."""
DRAIN_POLL_S = 1.0
PROGRESS_EVENTS = 5000
"""Between two reports on how far the run has come."""


class Explained(Struct, frozen=True, kw_only=True):
    """A decision on the request that was to be explained."""

    at_s: float
    front: int
    """Which router replica made it."""
    decision: Decision


class Fleet:
    """Engines behind one or several router replicas, driven by `run` once.

    Invariants: `_running` has the open legs that engines work on, by sequence id; `_flights` counts the requests that have not ended.
    """

    def __init__(
        self,
        routers: Sequence[Router],
        engines: Mapping[str, Engine],
        endpoints: Mapping[str, Endpoint],
        *,
        conditions: Conditions = Conditions(),  # noqa: B008 frozen
        seed: int = 0,
        mark: Callable[[PlannedRequest, Request], Request] | None = None,
    ) -> None:
        """`engines` and `endpoints` have the same names; all endpoints must serve the same model. `routers`: at least one.

        `seed` is of the chance in the conditions: losses on the way. `mark` may give a request what a plan does not tell: tenant,
        priority, objectives.
        """
        self._mark = mark
        self._conditions = conditions
        self._model = next(iter(endpoints.values())).model
        self._heap = EventHeap()
        self._fronts = [Front(number, one) for number, one in enumerate(routers)]
        self._running: dict[str, Leg] = {}
        self._transfers = Transfers(self._heap, conditions.kv_ways, self._running, self._nothing_kept)
        steps, fetch = conditions.steps_at_once, self._transfers.fetch
        self._hosts = {
            name: Host(endpoints[name], engine, self._heap, self._stepped, fetch, steps_at_once=steps)
            for name, engine in engines.items()
        }
        self._key_tokens = next(iter(engines.values())).settings.block_tokens if conditions.kv_events else 0
        self._news = News(self._fronts, self._hosts, self._heap, self._tell, conditions, Random(seed))
        self._recorder: Recorder | None = None
        self._plan = Plan(())
        self._flights: dict[int, Flight] = {}
        self._samples: list[Sample] = []
        self._explain = -1
        self.explained: list[Explained] = []
        """The decisions on the request to be explained."""

    def run(
        self,
        plan: Plan,
        *,
        until_s: float,
        scrape_s: float | None = None,
        recorder: Recorder | None = None,
        explain: int = -1,
        progress: Callable[[float, int], None] | None = None,
    ) -> list[Sample]:
        """Send the plan's requests when they are due and go on until all have ended, or until `until_s`.

        Returns one sample per request sent, in order of their ends; what has not ended by `until_s` is an error "unfinished".
        `recorder` follows the engines; `explain` is the index of a request whose decisions are kept; `progress` is told the time and
        the number of ended requests now and then.
        """
        self._plan, self._recorder, self._explain = plan, recorder, explain
        self._begin(scrape_s)
        heap, events = self._heap, 0
        while True:
            due = plan.peek()
            if due is None and not self._flights:
                break
            next_s = heap.next_s
            if due is not None and due.at_s <= next_s:
                if due.at_s > until_s:
                    break
                heap.advance(due.at_s)
                self._send(plan.take())
                continue
            if next_s > until_s:
                break
            heap.step()
            events += 1
            if progress is not None and not events % PROGRESS_EVENTS:
                progress(heap.now_s, len(self._samples))
        for flight in list(self._flights.values()):
            self._end(flight, error="unfinished")
        return self._samples

    @property
    def now_s(self) -> float:
        """How far virtual time has come."""
        return self._heap.now_s

    @property
    def events(self) -> int:
        """How many events there have been."""
        return self._heap.happened

    def check(self) -> None:
        """Raise InternalError if a router or an engine is inconsistent, or a request is with a router and forgotten here."""
        for front in self._fronts:
            front.router.check()
            if any(leg.front is not front or not leg.open for leg in front.legs.values()):
                raise InternalError(f"router {front.number} has legs that are over")
            if not all(flight.open for flight in front.flights.values()):
                raise InternalError(f"router {front.number} works on requests that have ended")
        for host in self._hosts.values():
            host.engine.check()

    # -- begin

    def _begin(self, scrape_s: float | None) -> None:
        conditions = self._conditions
        for name, host in self._hosts.items():
            if name in conditions.standby:
                host.life = Life.OFF
            else:
                self._list(host)
        self._news.begin(conditions.scrape_s if scrape_s is None else scrape_s)
        schedule(conditions.faults, self._hosts, self._heap, self)
        for scaling in conditions.scalings:
            self._heap.at(scaling.at_s, self._scale, self._hosts[scaling.endpoint], scaling.up)
        if self._recorder is not None:
            self._heap.at(0.0, self._record, self._recorder)

    def _record(self, recorder: Recorder) -> None:
        again_s = recorder.look(self._heap.now_s, self._hosts.values())
        self._heap.at(again_s, self._record, recorder)

    # -- router replicas

    def _tell(self, front: Front, fact: Fact) -> None:
        for effect in front.router.handle(fact, self._heap.now_s):
            self._carry_out(front, effect)

    def _carry_out(self, front: Front, effect: Effect) -> None:
        match effect:
            case StartLeg():
                self._start(front, effect)
            case CancelLeg(leg=number):
                leg = front.legs.pop(number)
                leg.open = False
                self._after(self._conditions.engine_s, self._abort, leg)
            case WakeAt(at_s=at_s):
                self._heap.at(at_s, self._tell, front, TimerDue())
            case Answer(request_id=request_id):
                self._after(self._conditions.client_s, self._answered, front, request_id, effect)
            case BreakStream(request_id=request_id, outcome=outcome):
                self._broken(front.flights.pop(request_id, None), outcome.value)
            case _:
                pass  # Ended repeats what the effects before it have said

    def _after(self, delay_s: float, happen: Callable[..., None], *args: object) -> None:
        """Call `happen` after a delay; at once if there is none."""
        if delay_s:
            self._heap.at(self._heap.now_s + delay_s, happen, *args)
        else:
            happen(*args)

    # -- clients

    def _send(self, planned: PlannedRequest) -> None:
        flight = Flight(planned, self._fronts[planned.index % len(self._fronts)], self._heap.now_s)
        self._flights[planned.index] = flight
        if self._conditions.clients.timeout_s is not None:
            self._heap.at(self._heap.now_s + self._conditions.clients.timeout_s, self._give_up, flight)
        self._after(self._conditions.client_s, self._arrive, flight)

    def _arrive(self, flight: Flight) -> None:
        if not flight.open:
            return
        planned = flight.planned
        request_id = flight.request_id
        tokens, keys = flight.prompt_tokens, self._key_tokens
        flight.front.flights[request_id] = flight
        request = Request(
            id=request_id,
            model=self._model,
            api=Api.CHAT,
            arrived_s=self._heap.now_s,
            prompt_tokens=tokens,
            prefix=tuple(flight.hashes(ROUTER_BLOCK_TOKENS)[: tokens // ROUTER_BLOCK_TOKENS]),
            block_tokens=ROUTER_BLOCK_TOKENS,
            keys=tuple(flight.hashes(keys)[: tokens // keys]) if keys else (),
            key_tokens=keys,
            output_tokens=planned.output_tokens,
            stream=True,
            session=planned.session,
        )
        if self._mark is not None:
            request = self._mark(planned, request)
        self._tell(flight.front, RequestArrived(request))

    def _answered(self, front: Front, request_id: str, answer: Answer) -> None:
        """An error answer has reached the client, who may ask again."""
        flight = front.flights.pop(request_id, None)
        clients = self._conditions.clients
        if flight is None:
            return  # gave up meanwhile
        if flight.attempt >= clients.retries:
            self._end(flight, error=answer.outcome.value)
            return
        pause_s = max(clients.backoff_s * 2.0**flight.attempt, answer.retry_after_s or 0.0)
        flight.attempt += 1
        self._heap.at(self._heap.now_s + pause_s + self._conditions.client_s, self._arrive, flight)

    def _broken(self, flight: Flight | None, error: str) -> None:
        if flight is not None:
            self._end(flight, error=error, after_s=self._conditions.client_s)

    def _give_up(self, flight: Flight) -> None:
        if not flight.open:
            return
        self._end(flight, error=CLIENT_TIMEOUT)
        if flight.front.flights.pop(flight.request_id, None) is not None:
            flight.front.leaving[flight.request_id] = flight
            self._after(self._conditions.client_s, self._left, flight)

    def _left(self, flight: Flight) -> None:
        del flight.front.leaving[flight.request_id]
        self._tell(flight.front, ClientLeft(flight.request_id))

    def _end(self, flight: Flight, error: str | None = None, usage: Usage | None = None, after_s: float = 0.0) -> None:
        """Write down what has come of a request; the client knows `after_s` later."""
        if flight.open:
            flight.open = False
            del self._flights[flight.planned.index]
            self._samples.append(flight.sample(self._heap.now_s + after_s, error, usage))

    # -- legs

    def _start(self, front: Front, effect: StartLeg) -> None:
        flight, host = front.flight(effect.request_id), self._hosts[effect.endpoint.name]
        flight.endpoint = host.name
        leg = front.legs[effect.leg] = Leg(front, flight, host, effect)
        if flight.planned.index == self._explain:
            now_s = self._heap.now_s
            self.explained.append(Explained(at_s=now_s, front=front.number, decision=effect.decision))
        self._after(self._conditions.engine_s, self._submit, leg)

    def _submit(self, leg: Leg) -> None:
        """The leg's request has reached its engine."""
        if not leg.open:
            return
        if leg.host.reachable:
            self._after(self._conditions.request_s.get(leg.host.name, 0.0), self._queue, leg)
        else:
            self._heap.at(self._heap.now_s + self._conditions.engine_s, self._fail, leg, Fault.CONNECT)

    def _queue(self, leg: Leg) -> None:
        """Its engine has read it."""
        host = leg.host
        if not leg.open:
            return
        if not host.reachable:
            self._fail(leg, Fault.RESET)
            return
        try:
            host.submit(leg.sequence())
        except CallerError:
            self._heap.at(self._heap.now_s + self._conditions.engine_s, self._refuse, leg)
        else:
            self._running[leg.sequence_id] = leg
            self._transfers.expect(leg)

    def _abort(self, leg: Leg) -> None:
        if self._running.pop(leg.sequence_id, None) is not None:
            leg.host.abort(leg.sequence_id)
            self._transfers.leave(leg)

    def _nothing_kept(self, leg: Leg) -> None:
        """The KV that a leg's engine was to fetch is not there any more: it computes it, or answers with an error."""
        if self._conditions.recompute:
            leg.host.compute_instead(leg.sequence_id)
            return
        del self._running[leg.sequence_id]
        leg.host.abort(leg.sequence_id)
        self._heap.at(self._heap.now_s + self._conditions.engine_s, self._fail, leg, Fault.STATUS, 500)

    def _stepped(self, host: Host, result: StepResult) -> None:
        """An engine has ended a step, or several plain ones."""
        delay_s = self._conditions.engine_s
        for sequence in result.started:
            leg = self._running.get(sequence.id)
            if leg is not None and leg.stage is not Stage.PREFILL:  # its answer comes in one piece
                self._after(delay_s, self._first_byte, leg)
        for sequence in result.finished:
            leg = self._running.pop(sequence.id, None)
            if leg is not None:
                self._after(delay_s, self._finish, leg, usage_of(leg, sequence))
        self._news.stepped(host)

    def _first_byte(self, leg: Leg) -> None:
        if leg.open:
            leg.flight.first_s = self._heap.now_s + self._conditions.client_s
            self._heap.at(self._heap.now_s + PROGRESS_S, self._progress, leg)
            self._tell(leg.front, LegStarted(leg.number))

    def _progress(self, leg: Leg) -> None:
        """Tokens keep coming, unless the engine hangs."""
        if leg.open:
            if leg.host.answers:
                self._tell(leg.front, LegProgressed(leg.number))
            self._heap.at(self._heap.now_s + PROGRESS_S, self._progress, leg)

    def _finish(self, leg: Leg, usage: Usage) -> None:
        if not leg.open:
            return
        leg.open = False
        del leg.front.legs[leg.number]
        flight = leg.flight
        if leg.stage is Stage.PREFILL:
            flight.kept = Kept(leg.host, leg.sequence_id, usage.cached_tokens or 0)
            self._tell(leg.front, LegFinished(leg.number, usage=usage, handoff=True))
            return
        self._tell(leg.front, LegFinished(leg.number, usage=usage))
        if leg.front.flights.pop(flight.request_id, None) is not None:
            self._end(flight, usage=usage, after_s=self._conditions.client_s)
            self._plan.answered(flight.planned, self._heap.now_s + self._conditions.client_s)

    def _refuse(self, leg: Leg) -> None:
        """The engine finds the request too large."""
        if leg.open:
            leg.open = False
            del leg.front.legs[leg.number]
            self._tell(leg.front, LegFinished(leg.number, status=400))
            leg.front.flights.pop(leg.flight.request_id, None)
            self._end(leg.flight, error="status 400")

    def _fail(self, leg: Leg, fault: Fault, status: int = 0) -> None:
        if leg.open:
            leg.open = False
            del leg.front.legs[leg.number]
            self._tell(leg.front, LegFailed(leg.number, fault, status))

    # -- engines come and go

    def crash(self, host: Host) -> None:
        """An engine process dies: all that runs there breaks."""
        if host.life is Life.OFF:
            return
        broken = [leg for leg in self._running.values() if leg.host is host]
        host.crash()
        self._news.lost(host)
        for leg in broken:
            del self._running[leg.sequence_id]
            self._transfers.lost(leg)
            self._heap.at(self._heap.now_s + self._conditions.engine_s, self._fail, leg, Fault.RESET)

    def start(self, host: Host) -> None:
        """An engine process serves, empty."""
        host.life = Life.UP
        self._news.found(host)

    def lose_events(self, host: Host, *, lost: bool) -> None:
        """From now on an engine's KV events get lost, or come again."""
        self._news.lose(host, lost=lost)

    def _scale(self, host: Host, up: bool) -> None:
        if up and host.life is Life.OFF:
            host.life = Life.STARTING
            self._heap.at(self._heap.now_s + self._conditions.start_s, self._appear, host)
        elif not up and host.listed:
            draining = replace(host.endpoint, draining=True)
            for front in self._fronts:
                self._tell(front, EndpointSeen(draining))
            self._stop_when_idle(host)

    def _appear(self, host: Host) -> None:
        host.life = Life.UP
        self._list(host)

    def _list(self, host: Host) -> None:
        """Discovery names an endpoint."""
        host.listed = True
        for front in self._fronts:
            self._tell(front, EndpointSeen(host.endpoint))
        self._news.found(host)

    def _stop_when_idle(self, host: Host) -> None:
        if not host.engine.idle:
            self._heap.at(self._heap.now_s + DRAIN_POLL_S, self._stop_when_idle, host)
            return
        host.crash()
        host.listed = False
        self._news.lost(host)
        for front in self._fronts:
            self._tell(front, EndpointGone(host.name))
