"""What goes wrong when: faults put on the event heap."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from beaconry.sim.conditions import Fault, FaultKind
from beaconry.sim.heap import EventHeap
from beaconry.sim.host import Host, Life


class Stage(Protocol):
    """What a fault does to the fleet beyond the host itself."""

    def crash(self, host: Host) -> None:
        """The process dies, and its legs break."""
        ...

    def start(self, host: Host) -> None:
        """The process is there again, empty."""
        ...

    def lose_events(self, host: Host, *, lost: bool) -> None:
        """Its KV events get lost, or come again."""
        ...


def schedule(faults: Iterable[Fault], hosts: Mapping[str, Host], heap: EventHeap, stage: Stage) -> None:
    """Put the begin and the end of each fault on the heap."""
    for fault in faults:
        for name in fault.endpoints:
            heap.at(fault.at_s, _begin, fault, hosts[name], stage)
            heap.at(fault.at_s + fault.for_s, _end, fault, hosts[name], stage)


def _begin(fault: Fault, host: Host, stage: Stage) -> None:
    match fault.kind:
        case FaultKind.CRASH:
            stage.crash(host)
        case FaultKind.HANG if host.life is Life.UP:
            host.hang()
        case FaultKind.SLOW:
            host.slow(fault.factor)
        case FaultKind.EVENT_GAP:
            stage.lose_events(host, lost=True)


def _end(fault: Fault, host: Host, stage: Stage) -> None:
    match fault.kind:
        case FaultKind.CRASH if host.listed and host.life is Life.OFF:
            stage.start(host)
        case FaultKind.HANG if host.life is Life.HUNG:
            host.resume()
        case FaultKind.SLOW:
            host.slow(1.0)
        case FaultKind.EVENT_GAP:
            stage.lose_events(host, lost=False)
