"""Who may ask for what: the tenants file, and the sections of the gateway's configuration that go with it.

What a request does not say itself is taken from the objective it names (where its sender is trusted to), else from its tenant, else from
its model.
"""

from enum import StrEnum
from pathlib import PurePath
from typing import Annotated

from msgspec import Meta, field
from msgspec.structs import asdict

from beaconry.config.section import Priority, Section

KeyHash = Annotated[
    str,
    Meta(
        pattern=r"^sha256:[0-9a-f]{64}\Z",
        description='"sha256:" and 64 hex digits, as `beaconry key` prints',
        extra={"secret": True},
    ),
]
"""What stands there by mistake is most likely a key."""
Name = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._]{0,62}[A-Za-z0-9])?\Z",
        description='a name of letters, digits and inner "-", "." and "_", at most 64',
    ),
]
"""It ends up in logs, metrics and messages."""
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class TrustedHeader(StrEnum):
    """What a client may say of its own requests, where it is trusted to. From others such headers are ignored."""

    FLOW = "flow"
    """`x-llm-d-inference-fairness-id`: on whose behalf it asks; the requests of each get a fair share of their own."""
    OBJECTIVE = "objective"
    """`x-llm-d-inference-objective`: the name of one of `objectives`, and thereby the priority."""
    PROGRAM = "program"
    """`x-beaconry-program`: the agent or workflow that the request is a step of."""
    SLO = "slo"
    """`x-llm-d-slo-ttft-ms` and `x-llm-d-slo-tpot-ms`. It only asks for preference within the request's own priority."""


class Objective(Section, frozen=True):
    """What is wanted for a request. What is absent is left to what is asked next."""

    priority: Priority | None = None
    """Higher goes first, negative may be shed; 0 if nobody says anything."""
    ttl_s: Positive | None = None
    """How long it may wait for dispatch."""
    slo_ttft_s: Positive | None = None
    """From arrival to the first token."""
    slo_itl_s: Positive | None = None
    """Mean time between tokens."""


class TenantLimits(Section, frozen=True):
    """What a tenant may take; absent is unlimited. Each is a bucket that refills steadily."""

    requests_per_s: Positive | None = None
    burst_requests: Count | None = None
    """Requests that may come at once after a pause; absent is one second's worth, and at least one."""
    input_tokens_per_minute: Count | None = None
    """A minute's worth may come at once."""
    output_tokens_per_minute: Count | None = None
    concurrency: Count | None = None
    """Requests that have not ended."""

    def __post_init__(self) -> None:
        if self.burst_requests is not None and self.requests_per_s is None:
            raise ValueError("burstRequests limits nothing without requestsPerS; add that, or remove it")


class TenantConfig(Section, frozen=True):
    """One tenant."""

    keys: tuple[KeyHash, ...] = ()
    """Hashes of its API keys; several, so that a new one can be handed out before the old one is withdrawn."""
    weight: Positive = 1.0
    """Its share against others of the same priority."""
    models: tuple[str, ...] | None = None
    """The names it may ask for; absent is all."""
    defaults: Objective = Objective()
    limits: TenantLimits = TenantLimits()
    trusted_headers: tuple[TrustedHeader, ...] = ()
    """Beside those that everybody is trusted with."""


class TenantsFile(Section, frozen=True):
    """The file that `tenants.file` names. It is re-read when it changes."""

    tenants: dict[Name, TenantConfig] = field(default_factory=dict)


class Tenants(Section, frozen=True):
    """API keys. Places of files are relative to the file that names them."""

    file: str | None = None
    """The tenants file; with one, every request under `/v1` needs a key. Absent: nobody does."""
    engine_key_file: str | None = None
    """A file with the key that the engines ask for (vLLM's `--api-key`), sent to them in the client's stead."""

    def beside(self, source: PurePath) -> "Tenants":
        """With the files' places relative to `source`, the file that this stands in."""
        return Tenants(**{name: place and str(source.parent / place) for name, place in asdict(self).items()})


class Target(Section, frozen=True):
    """A model that engines serve, behind a name that clients use."""

    model: str
    weight: Annotated[int, Meta(ge=0, le=1_000_000)] = 1


class ModelConfig(Section, frozen=True):
    """A name that clients may ask for."""

    targets: tuple[Target, ...] = ()
    """What it stands for, by weight; absent is the engines' model of that name. Answers bear the name that was asked for."""
    defaults: Objective = Objective()

    def __post_init__(self) -> None:
        if self.targets and not any(target.weight for target in self.targets):
            raise ValueError("all targets have weight 0: no request could be sent anywhere; give one a weight")
