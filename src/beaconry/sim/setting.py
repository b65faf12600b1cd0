"""A scenario's words to the conditions of a run: which endpoints a fault hits, which are started when, how late news is."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

from beaconry.manifests.model_service import Spec
from beaconry.sim.conditions import Clients, Conditions, Fault, FaultKind, Scaling
from beaconry.sim.scenario import FaultSection, Scenario
from beaconry.values.endpoint import Endpoint
from beaconry.values.errors import OperatorError


def most_replicas(scenario: Scenario) -> dict[str, int]:
    """How many engines each pool ever has. OperatorError if a scaling names a pool that is not there."""
    most = {pool.name: pool.replicas for pool in scenario.service.pools}
    for number, change in enumerate(scenario.scaling):
        _known(change.pool, most, f"scaling[{number}].pool")
        most[change.pool] = max(most[change.pool], change.replicas)
    return most


def conditions_of(scenario: Scenario, endpoints: Mapping[str, Endpoint]) -> Conditions:
    """The conditions of every run of a scenario, given all endpoints it ever has, in order of pools and replicas."""
    network, router, clients = scenario.network, scenario.service.router, scenario.clients
    return Conditions(
        client_s=network.client_s,
        engine_s=network.engine_s,
        scrape_s=router.scrape.interval_s,
        scrape_delay_s=network.scrape_delay_s,
        scrape_loss=network.scrape_loss,
        health=router.health,
        recompute=scenario.service.kv_transfer.on_load_failure == "recompute",
        start_s=scenario.fleet.start_s,
        clients=Clients(timeout_s=clients.timeout_s, retries=clients.retries, backoff_s=clients.backoff_s),
        faults=tuple(_faults(scenario, list(endpoints.values()))),
        scalings=tuple(_scalings(scenario)),
        standby=frozenset(_standby(scenario.service, endpoints)),
        kv_events=scenario.fleet.kv_events,
        event_delay_s=network.event_delay_s,
        event_loss=network.event_loss,
    )


def zone_of(place: int, zones: int) -> int:
    """The zone of the endpoint at this place in the list."""
    return place % zones


def _faults(scenario: Scenario, endpoints: Sequence[Endpoint]) -> Iterator[Fault]:
    pools = [pool.name for pool in scenario.service.pools]
    for number, fault in enumerate(scenario.faults):
        place = f"faults[{number}]"
        if fault.pool is not None:
            _known(fault.pool, pools, f"{place}.pool")
        if fault.type == "event-gap" and not scenario.fleet.kv_events:
            raise OperatorError(
                f"{place}.type: routers are told no KV events that could get lost; set fleet.kvEvents: true"
            )
        hit = _hit(fault, endpoints, scenario.fleet.zones, place)
        yield Fault(kind=FaultKind(fault.type), at_s=fault.at_s, for_s=fault.for_s, endpoints=hit, factor=fault.factor)


def _hit(fault: FaultSection, endpoints: Sequence[Endpoint], zones: int, place: str) -> tuple[str, ...]:
    if fault.zone is not None and fault.zone >= zones:
        raise OperatorError(
            f"{place}.zone: there is no zone {fault.zone}; fleet.zones is {zones}, and counting begins at 0"
        )
    found = [
        endpoint.name
        for at, endpoint in enumerate(endpoints)
        if fault.pool in (None, endpoint.pool) and fault.zone in (None, zone_of(at, zones))
    ]
    return tuple(found if fault.zone is not None else found[: fault.engines])


def _scalings(scenario: Scenario) -> Iterator[Scaling]:
    """Replicas are numbered: those beyond the new number go, those below it come."""
    have = {pool.name: pool.replicas for pool in scenario.service.pools}
    for change in sorted(scenario.scaling, key=lambda one: one.at_s):
        old, new = have[change.pool], change.replicas
        have[change.pool] = new
        for index in range(min(old, new), max(old, new)):
            yield Scaling(at_s=change.at_s, endpoint=f"{change.pool}-{index}", up=new > old)


def _standby(spec: Spec, endpoints: Mapping[str, Endpoint]) -> Iterator[str]:
    replicas = {pool.name: pool.replicas for pool in spec.pools}
    for name, endpoint in endpoints.items():
        if int(name.rpartition("-")[2]) >= replicas[endpoint.pool]:
            yield name


def _known(name: str, names: Sequence[str] | Mapping[str, int], place: str) -> None:
    if name not in names:
        close = get_close_matches(name, list(names), 1)
        hint = f'did you mean "{close[0]}"? ' if close else ""
        raise OperatorError(f'{place}: there is no pool "{name}"; {hint}there is: {", ".join(names)}')
