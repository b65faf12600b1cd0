"""A relay passes an answer on and tells the router of it: when it begins, that it goes on, and when it ends."""

from types import SimpleNamespace

from beaconry.io.relay import PROGRESS_S, Relay
from beaconry.router.effects import StartLeg
from beaconry.router.facts import LegFinished, LegProgressed, LegStarted
from beaconry.values.candidate import Candidate
from beaconry.values.decision import Decision, Ranking
from beaconry.values.endpoint import Endpoint
from beaconry.values.request import Api, Usage

STREAM = [(b"content-type", b"text/event-stream")]
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3}}\n\n'


class Desk:
    """The driver's part: a clock that a test sets, and what the relay has told."""

    def __init__(self):
        self.time_s = 0.0
        self.told = []

    def now_s(self):
        return self.time_s

    def tell(self, fact):
        self.told.append(fact)


class Client:
    """The exchange's part: what has been sent, and whether the client keeps up."""

    method, target, on_writable = "POST", b"/v1/chat/completions", None

    def __init__(self, *, slow=False):
        self.sent = b""
        self.slow = slow
        self.ended = False

    def start(self, status, headers, length=None):
        self.status = status

    def write(self, data):
        self.sent += data
        return not self.slow

    def finish(self, data):
        self.sent += data
        self.ended = True


def streaming(client):
    """A relay whose engine has begun to stream, and the parts around it."""
    desk, calls = Desk(), []
    parsed = SimpleNamespace(
        api=Api.CHAT, model="m", asked_model="m", stream=True, wants_usage=False, body=b'{"model":"m"}'
    )
    relay = Relay(desk, client, parsed, b"")
    endpoint = Endpoint(name="e", host="h", port=1, model="m")
    ranking = Ranking(winner=0, why="the only one")
    decision = Decision(endpoint=endpoint, policy="sticky", candidates=(Candidate(endpoint=endpoint),), ranking=ranking)
    relay.start(StartLeg("r", 7, endpoint, decision), SimpleNamespace(address=b"h:1", send=calls.append))
    relay.on_answer(200, STREAM, None)
    relay.on_data(TOKEN, ended=False)
    return relay, desk, calls[0]


def test_that_an_answer_goes_on_is_told_once_in_a_while_and_not_for_every_token():
    client = Client()
    relay, desk, _ = streaming(client)
    assert desk.told == [LegStarted(7, 200)]
    for number in range(1, 26):
        desk.time_s = number * PROGRESS_S / 10
        relay.on_data(TOKEN, ended=False)
    assert desk.told[1:] == [LegProgressed(7)] * 2
    relay.on_data(USAGE, ended=True)
    assert desk.told[3:] == [LegFinished(7, 200, Usage(prompt_tokens=5, completion_tokens=3))]
    assert (client.sent, client.ended) == (TOKEN * 26, True)


def test_an_engine_waits_while_its_client_is_slow():
    client = Client(slow=True)
    relay, _, call = streaming(client)
    held = []
    call.attach(
        SimpleNamespace(transport=SimpleNamespace(pause_reading=lambda: held.append(1), resume_reading=held.clear))
    )
    relay.on_data(TOKEN, ended=False)
    assert held
    client.on_writable()
    assert not held
