"""What the door makes of a request before the router hears of it."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from beaconry.config.gateway import Access
from beaconry.io.door import Door
from beaconry.io.prompts import Keyed
from beaconry.router.facts import RequestRefused
from beaconry.tenancy.reception import Reception
from beaconry.wire.tokens import PromptTokens, TokenSource

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()


class Desk:
    """The driver's part: it keeps what it is told and given."""

    def __init__(self):
        self.router = SimpleNamespace(tokens_per_byte=lambda _model: 0.25)
        self.told, self.admitted, self.work = [], [], []

    def now_s(self):
        return 1.0

    def tell(self, fact):
        self.told.append(fact)

    def admit(self, relay, request_id, fact):
        self.admitted.append((relay, request_id, fact.request))

    def spawn(self, work):
        self.work.append(work)


class Exchange:
    """A request that has come in."""

    method, path, target, body = "POST", "/v1/chat/completions", b"/v1/chat/completions", BODY
    on_close = None

    def __init__(self, **headers):
        self.headers = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
        self.closed = False

    def header(self, name):
        return dict(self.headers).get(name)


def door(desk, keyed=None, **access):
    prompts = SimpleNamespace(begin=lambda _model, _api, _body: keyed)
    return Door(desk, prompts, Reception(), lambda: iter(()), Access(**access), engine_key=None)


def test_a_client_that_leaves_while_its_prompt_is_tokenized_is_counted_and_not_admitted():
    async def tokenized():
        return Keyed(PromptTokens(ids=None, source=TokenSource.NONE), (), 0)

    desk, exchange = Desk(), Exchange()
    door(desk, tokenized()).handle(exchange)
    exchange.closed = True
    (work,) = desk.work
    asyncio.run(work)
    assert (desk.told, desk.admitted) == ([RequestRefused(499)], [])


def test_requests_of_two_starts_have_different_ids():
    desk = Desk()
    for one in (door(desk), door(desk)):
        for _ in range(3):
            one.handle(Exchange())
    assert len({request_id for _, request_id, _ in desk.admitted}) == 6


@pytest.mark.parametrize(("given", "known"), [(b"me", "me"), (b"x" * 300, "x" * 256), (b"", None)])
def test_a_session_is_what_the_operators_header_says_in_256_bytes(given, known):
    desk = Desk()
    door(desk, session_header="X-Who").handle(Exchange(x_who=given))
    door(desk).handle(Exchange(x_who=given))
    assert [request.session for _, _, request in desk.admitted] == [known, None]


@pytest.mark.parametrize(("given", "kept"), [(b"mine-1", b"mine-1"), (b"two words", None), (b"x" * 129, None)])
def test_a_clients_id_is_kept_for_its_answer_if_it_is_a_short_word(given, kept):
    desk = Desk()
    door(desk).handle(Exchange(x_request_id=given))
    ((relay, request_id, _),) = desk.admitted
    assert relay.client_id == kept
    assert given.decode() not in request_id
