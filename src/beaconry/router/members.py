"""All endpoints the router knows, by name and by model."""

from collections.abc import Iterable, Iterator, Sequence
from random import Random

from beaconry.config.gateway import Health
from beaconry.router.caches import Finding
from beaconry.router.member import Member
from beaconry.router.shortlist import shortlist
from beaconry.values.endpoint import Endpoint, Role
from beaconry.values.errors import InternalError
from beaconry.values.request import Request
from beaconry.values.stage import PREFILL, WHOLE, Stage


class Members:
    """The registry. An endpoint that is gone stays until its last leg has ended, so that its ledger remains true."""

    def __init__(self, knobs: Health, shortlist_above: int) -> None:
        """`shortlist_above`: endpoints of a model that are all judged for each request."""
        self._knobs = knobs
        self._shortlist_above = shortlist_above
        self._by_name: dict[str, Member] = {}
        self._answering: dict[str, list[Member]] = {}
        """Those of role both or decode that are not gone, by what they serve: models, and LoRA adapters that no model has the name of; no
        empty lists."""
        self._prefilling: dict[str, list[Member]] = {}
        """Those of role prefill, likewise."""

    def get(self, name: str) -> Member | None:
        """The endpoint of that name, gone ones included."""
        return self._by_name.get(name)

    def __getitem__(self, name: str) -> Member:
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def items(self) -> Iterable[tuple[str, Member]]:
        """All by name."""
        return self._by_name.items()

    def __iter__(self) -> Iterator[Member]:
        return iter(self._by_name.values())

    def models(self) -> tuple[str, ...]:
        """All models that some endpoint serves, in order of appearance."""
        return tuple(dict.fromkeys((*self._answering, *self._prefilling)))

    def serves(self, model: str) -> bool:
        """Some endpoint that is not gone is there for it."""
        return model in self._answering or model in self._prefilling

    def serving(self, model: str) -> Sequence[Member]:
        """Those that are not gone and answer requests for it, whatever their state."""
        return self._answering.get(model, ())

    def splits(self, model: str) -> bool:
        """It has prefill endpoints that are not gone."""
        return model in self._prefilling

    def seen(self, endpoint: Endpoint) -> Member:
        """Take in what discovery says of an endpoint."""
        member = self._by_name.get(endpoint.name)
        if member is None:
            member = self._by_name[endpoint.name] = Member(endpoint, self._knobs)
        member.seen(endpoint)
        self._regroup()
        return member

    def adapt(self, member: Member, adapters: tuple[str, ...]) -> None:
        """Note the LoRA adapters that it serves. Told again each few seconds, mostly without news."""
        if adapters != member.adapters:
            member.adapters = adapters
            self._regroup()

    def lose(self, member: Member) -> None:
        """Discovery no longer names it."""
        member.lost()
        self.tidy(member)
        self._regroup()

    def tidy(self, member: Member) -> bool:
        """Forget one that is gone if it has nothing in flight. True if so."""
        if not member.gone or member.prefilling or member.decoding:
            return False
        self._by_name.pop(member.endpoint.name, None)
        return True

    def open_to(self, model: str, now_s: float, tried: Sequence[str] = (), stage: Stage = WHOLE) -> list[Member]:
        """Those that may get a leg of this stage now. If all that answer are ejected, those, since refusing would be worse."""
        return _open_of(self._group(model, stage), now_s, tried)

    def worth_judging(
        self, request: Request, tried: Sequence[str], finding: Finding, now_s: float, rng: Random, stage: Stage
    ) -> list[Member]:
        """Those of a small fleet that may get this request, a shortlist of them in a large one."""
        everyone = self._group(request.model, stage)
        if len(everyone) > self._shortlist_above:
            few = shortlist(request.model, everyone, self._by_name, finding, now_s, rng)
            few = [m for m in few if m.endpoint.name not in tried]
            if few:
                return few
        return _open_of(everyone, now_s, tried)

    def check(self, legs: set[int]) -> None:
        """Raise InternalError if an endpoint's ledger is wrong, or those of all are not for exactly these legs."""
        for member in self:
            member.check()
        if {leg for member in self for leg in (*member.prefilling, *member.decoding)} != legs:
            raise InternalError("the endpoints' legs are not the router's")

    def _group(self, model: str, stage: Stage) -> Sequence[Member]:
        return (self._prefilling if stage is PREFILL else self._answering).get(model, ())

    def _regroup(self) -> None:
        self._answering, self._prefilling = {}, {}
        serving = [member for member in self if not member.gone]
        for member in serving:
            self._file(member, member.endpoint.model)
        models = set(self.models())
        for member in serving:
            for adapter in member.adapters:
                if adapter not in models:
                    self._file(member, adapter)

    def _file(self, member: Member, model: str) -> None:
        match member.endpoint.role:
            case Role.BOTH | Role.DECODE:
                self._answering.setdefault(model, []).append(member)
            case Role.PREFILL:
                self._prefilling.setdefault(model, []).append(member)
            case Role.ENCODE:
                pass  # no leg of a request runs there


def _open_of(serving: Sequence[Member], now_s: float, tried: Sequence[str]) -> list[Member]:
    """Those of a group, all of one stage, that may get a leg now; of those that answer else the ejected ones."""
    members = [m for m in serving if m.ready]
    if len(members) == len(serving) and not tried:
        return members  # nearly always
    members = [m for m in serving if m.admits(now_s) and m.endpoint.name not in tried]
    if members or not serving or serving[0].endpoint.role is Role.PREFILL:
        return members
    return [m for m in serving if m.last_resort and m.endpoint.name not in tried]
