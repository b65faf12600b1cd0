"""In which order the engines of a plan serve what waits in them: the flag that says it to them, and what the router is told of it.

Simulated engines read vLLM's flag.
"""

from collections.abc import Sequence

from beaconry.manifests.flags import last_value
from beaconry.manifests.model_service import SimEngine, VllmEngine
from beaconry.values.endpoint import SchedulingPolicy

_FLAG = "--scheduling-policy"


def scheduling_flags(engine: SimEngine | VllmEngine) -> tuple[str, ...]:
    """The flags that make an engine serve as the spec says; none for its default."""
    return () if engine.scheduling_policy == "fcfs" else (_FLAG, engine.scheduling_policy)


def scheduling_policy(engine: SimEngine | VllmEngine, args: Sequence[str]) -> SchedulingPolicy:
    """How an engine serves that is started with the operator's arguments after ours. It refuses itself what it does not know."""
    wanted = last_value((*scheduling_flags(engine), *args), _FLAG)
    return SchedulingPolicy.PRIORITY if wanted == "priority" else SchedulingPolicy.FCFS
