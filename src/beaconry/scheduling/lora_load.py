"""A further part of the expected cost for those who serve LoRA adapters: bringing one into an engine takes time.

Engines keep as many adapters in the accelerator's memory as they have slots for, and bring others in when a request asks for them. Where
the metrics say which ones run or are waited for, an endpoint that has the adapter is better by the time of loading one. That time is
configured by naming this term (`costTerms: [lora-load]`), not measured: an adapter of rank 16 for an 8B model has 84 MB, which is 3 ms
over PCIe from the host's memory, where vLLM keeps adapters once used, and some 50 ms from a disk.
"""

from beaconry.values.candidate import Candidate, Prediction
from beaconry.values.request import Request

LOAD_S = 0.05


class LoraLoad:
    """The cost term."""

    def cost_s(self, request: Request, candidate: Candidate, prediction: Prediction) -> float:  # noqa: ARG002
        """`LOAD_S` for an adapter that the endpoint is known not to have at hand; nothing where it is not known."""
        load = None if candidate.sample is None else candidate.sample.adapters
        if load is None or request.model == candidate.endpoint.model:
            return 0.0
        return 0.0 if request.model in load.running or request.model in load.waiting else LOAD_S
