"""In how many legs requests run: the knobs, and which roles make sense together."""

from collections.abc import Collection
from typing import Annotated, Literal

from msgspec import Meta

from beaconry.config.section import ABOVE_0, Section
from beaconry.values.endpoint import Role

ConnectorName = Literal["nixl"]
"""The kinds of hand-over that there are: `disagg/connectors.py`."""


class Disaggregation(Section, frozen=True):
    """When a prompt is computed on an endpoint of role prefill and answered from one of role decode. Without the former it never is."""

    mode: Literal["auto", "always", "never"] = "auto"
    """`auto` goes by the two thresholds, and runs whole what would wait for a prefill endpoint; `always` splits whatever can be split, and
    lets it wait; `never` runs all on decode and both."""
    min_uncached_tokens: Annotated[int, Meta(ge=0)] = 2048
    """Prompt tokens to be computed, from which on a request is split. Fewer disturb a running batch for no longer than a second leg takes;
    NVIDIA Dynamo takes the same. 0 sets no threshold."""
    min_uncached_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Their least share of the prompt, beside that. Dynamo has 0.7; but only what is not cached is fetched, so the rest costs nothing, and
    with a ratio the later turns of conversations and agents all run where they stall answers (docs/disaggregation.md)."""
    on_prefill_failure: Literal["aggregate", "error"] = "aggregate"
    """Once no other prefill endpoint may be tried: run the request in one leg, or answer 502. The latter keeps long prompts off the decode
    endpoints whatever happens."""
    connector: ConnectorName = "nixl"
    """How engines hand KV over: what the bodies of both legs say of it. `nixl`: vLLM's NixlConnector. In a service's spec,
    `kvTransfer.connector` is what counts."""
    transfer_bytes_per_s: Annotated[float, ABOVE_0] = 25e9
    """From one engine's accelerators to another's, where learning begins: a 200 Gbit/s network card. Counts if
    `offloading.kvBytesPerToken` is given."""


def role_fault(roles: Collection[Role], mode: str) -> str | None:
    """What is wrong with a model whose endpoints have these roles, and what to do; None if it can be served."""
    answering = Role.DECODE in roles or Role.BOTH in roles
    if Role.PREFILL in roles and not answering:
        return "endpoints of role prefill, and none to answer: add some of role decode (or both)"
    if mode == "always" and Role.PREFILL not in roles:
        return "no endpoints of role prefill, but disaggregation.mode is always: add some, or set auto"
    return None
