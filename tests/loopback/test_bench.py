"""The load client and the verb `bench` against a small OpenAI-like server with known behaviour."""

import argparse
import asyncio
import json
import os
import signal
import threading
from contextlib import contextmanager
from itertools import islice
from random import Random

import pytest
import uvloop
from msgspec.structs import replace

from beaconry.apps import bench
from beaconry.apps.bench import BenchOptions, run_bench
from beaconry.io.load.client import LoadClient, LoadOptions
from beaconry.io.load.target import Target, first_model, parse_target
from beaconry.values.errors import OperatorError
from beaconry.workload.arrivals import fixed
from beaconry.workload.plan import Plan
from beaconry.workload.prompts import PromptText
from beaconry.workload.sample import INTERRUPTED, Slo
from beaconry.workload.synthetic import Bounds, Shape, conversations


def event(value):
    data = b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


class Server:
    """Answers every request with `max_tokens` chunks at once, unless `behave` does something else first and returns True."""

    HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"

    def __init__(self, behave=None):
        self.behave = behave
        self.bodies = []
        self.heads = []
        self.open = self.most_open = 0
        self.port = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, limit=1 << 22)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        for _ in range(500):
            if not self.open:
                break
            await asyncio.sleep(0.01)
        assert self.open == 0, "the client leaves no connection behind"

    async def serve(self, reader, writer):
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                if head.startswith("GET"):
                    models = b'{"object": "list", "data": [{"id": "first"}, {"id": "second"}]}'
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(models), models))
                    continue
                length = next(line.split(":")[1] for line in head.split("\r\n") if line.startswith("content-length"))
                body = json.loads(await reader.readexactly(int(length)))
                self.heads.append(head)
                self.bodies.append(body)
                if self.behave is None or not await self.behave(len(self.bodies), reader, writer):
                    self.answer(body, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    def answer(self, body, writer, reply="word "):
        tokens = body["max_tokens"]
        usage = {"prompt_tokens": 100, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": 25}}
        chunk = {"delta": {"content": reply}} if "messages" in body else {"text": reply}
        writer.write(self.HEAD + b"x-beaconry-endpoint: engine-%d\r\n\r\n" % (len(self.bodies) % 2))
        writer.write(event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))
        for _ in range(tokens):
            writer.write(event({"choices": [{"index": 0, **chunk}]}))
        writer.write(event({"choices": [], "usage": usage}) + event(b"[DONE]") + b"0\r\n\r\n")


def plan(count, rate=200.0, tokens=4, turns=1):
    shape = Shape(prompt_tokens=Bounds(low=8, high=8), output_tokens=Bounds(low=tokens, high=tokens), turns=turns)
    return Plan(conversations(shape, islice(fixed(rate), count), Random(1)))


async def check_all_along(client):
    while True:
        client.check()
        await asyncio.sleep(0.002)


def run(behave, planned, load=None, stop=None, **more):
    """Run a plan against a server with that behaviour; the samples by index, and the server."""

    async def main():
        async with Server(behave) as server:
            target = Target(host="127.0.0.1", port=server.port, model="m", **more)
            client = LoadClient(planned, PromptText(), target, load or LoadOptions(timeout_s=20.0))
            async with asyncio.TaskGroup() as tasks:
                checking = tasks.create_task(check_all_along(client))
                samples = await client.run(stop)
                checking.cancel()
            client.check()
            return sorted(samples, key=lambda sample: sample.index), server

    return uvloop.run(main())


async def never(number, reader, writer):
    """No answer until the client gives up."""
    async with asyncio.timeout(30):
        assert await reader.read(1) == b""
    return True


def test_every_request_is_sent_once_and_measured():
    samples, server = run(None, plan(20))
    assert [sample.error for sample in samples] == [None] * 20
    assert all(sample.sent_s >= sample.planned_s for sample in samples)
    assert all(sample.sent_s <= sample.first_s <= sample.end_s for sample in samples)
    assert {(s.prompt_tokens, s.cached_tokens, s.output_tokens, len(s.gaps_s)) for s in samples} == {(100, 25, 4, 3)}
    assert {sample.endpoint for sample in samples} == {"engine-0", "engine-1"}
    assert len(server.bodies) == 20


def test_the_body_asks_for_a_stream_with_usage_and_exact_length():
    _, server = run(None, plan(1), headers=(("authorization", "Bearer key"), ("x-team", "a")))
    (body,) = server.bodies
    assert body["model"] == "m"
    assert body["messages"][0]["role"] == "user"
    assert len(body["messages"][0]["content"]) == 32
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert (body["max_tokens"], body["ignore_eos"]) == (4, True)
    assert "authorization: Bearer key\r\n" in server.heads[0]
    assert "x-team: a\r\n" in server.heads[0]


def test_plain_completions_are_sent_with_a_prompt():
    samples, server = run(None, plan(2), LoadOptions(chat=False, ignore_eos=False))
    assert [sample.error for sample in samples] == [None, None]
    assert server.heads[0].startswith("POST /v1/completions ")
    assert set(server.bodies[0]) == {"model", "prompt", "max_tokens", "stream", "stream_options"}


def test_a_stalled_server_cannot_hide_the_wait_of_requests_planned_meanwhile():
    async def stall(number, reader, writer):
        if number == 1:
            await asyncio.sleep(0.4)

    samples, server = run(stall, plan(10, rate=100.0), LoadOptions(max_connections=1))
    assert server.most_open == 1
    for sample in samples:
        assert sample.error is None
        waited_s = 0.39 - sample.planned_s  # the loop's timers may ring a millisecond early
        assert sample.ttft_s >= waited_s
        assert sample.index == 0 or sample.lag_s >= waited_s


def test_an_open_loop_does_not_wait_for_answers():
    everything_sent = asyncio.Event()

    async def all_together(number, reader, writer):
        if number == 10:
            everything_sent.set()
        await everything_sent.wait()

    samples, server = run(all_together, plan(10))
    assert [sample.error for sample in samples] == [None] * 10
    assert server.most_open == 10


def test_connections_are_reused_when_they_are_free():
    _, server = run(None, plan(30, rate=100.0), LoadOptions(max_connections=2))
    assert server.most_open <= 2
    assert len(server.bodies) == 30


def test_a_conversation_goes_on_with_the_real_reply():
    samples, server = run(None, plan(2, turns=3))
    assert [sample.error for sample in samples] == [None] * 6
    first, second, third = sorted((body["messages"] for body in server.bodies), key=len)[::2]
    assert [message["role"] for message in third] == ["user", "assistant", "user", "assistant", "user"]
    assert second[1]["content"] == "word " * 4
    assert len(first) == 1
    ends = {(sample.session, sample.turn): sample.end_s for sample in samples}
    assert all(s.planned_s >= ends[s.session, s.turn - 1] for s in samples if s.turn)


def test_a_conversation_ends_with_its_first_failure():
    async def refuse(number, reader, writer):
        writer.write(b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\nboom")
        return True

    samples, _ = run(refuse, plan(2, turns=3))
    assert [(sample.error, sample.detail) for sample in samples] == [("status 500", "boom")] * 2


async def reset(number, reader, writer):
    writer.write(Server.HEAD + b"\r\n" + event({"choices": [{"delta": {"content": "a"}}]}))
    await writer.drain()
    writer.transport.abort()
    return True


async def truncate(number, reader, writer):
    writer.write(Server.HEAD + b"\r\n" + event({"choices": [{"delta": {"content": "a"}}]}) + b"0\r\n\r\n")
    return True


async def speak_no_http(number, reader, writer):
    writer.write(b"SSH-2.0-OpenSSH\r\n")
    return True


@pytest.mark.parametrize(
    ("behave", "error"), [(reset, "reset"), (truncate, "truncated"), (speak_no_http, "bad answer"), (never, "timeout")]
)
def test_failures_are_told_apart(behave, error):
    samples, _ = run(behave, plan(3), LoadOptions(timeout_s=0.3))
    assert [sample.error for sample in samples] == [error] * 3
    assert all(sample.detail for sample in samples)


def test_requests_that_never_got_a_connection_time_out_too():
    samples, _ = run(never, plan(4), LoadOptions(timeout_s=0.3, max_connections=1))
    assert [sample.error for sample in samples] == ["timeout"] * 4
    assert all(sample.e2e_s >= 0.29 for sample in samples)


def test_nobody_listening_is_a_failure_of_each_request():
    async def main():
        async with Server() as server:
            port = server.port
        client = LoadClient(plan(3), PromptText(), Target(host="127.0.0.1", port=port, model="m"), LoadOptions())
        return await client.run()

    assert [sample.error for sample in uvloop.run(main())] == ["connect"] * 3


def test_a_kept_connection_that_the_server_just_closed_is_no_failure():
    async def close_second(number, reader, writer):
        if number == 2:
            writer.close()
        return number == 2

    samples, server = run(close_second, plan(3, rate=20.0), LoadOptions(max_connections=1))
    assert [sample.error for sample in samples] == [None] * 3
    assert len(server.bodies) == 4


def test_an_answer_may_end_with_its_connection():
    async def old_style(number, reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        writer.write(b'data: {"choices": [{"text": "a"}]}\n\ndata: [DONE]\n\n')
        await writer.drain()
        writer.close()
        return True

    samples, _ = run(old_style, plan(2))
    assert [(sample.error, sample.output_tokens) for sample in samples] == [(None, 1)] * 2


def test_interim_answers_are_passed_over():
    async def hint(number, reader, writer):
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")

    samples, _ = run(hint, plan(3))
    assert [sample.error for sample in samples] == [None] * 3


def test_stopping_cuts_off_what_is_in_flight_and_keeps_what_came():
    stop = asyncio.Event()

    async def stop_at_third(number, reader, writer):
        if number < 3:
            return False
        stop.set()
        return await never(number, reader, writer)

    endless = plan(None, rate=50.0)
    samples, _ = run(stop_at_third, endless, stop=stop)
    assert [sample.error for sample in samples][:2] == [None, None]
    assert {sample.error for sample in samples[2:]} == {INTERRUPTED}


def test_run_bench_gives_a_result_with_every_figure():
    shown = []

    async def main():
        async with Server() as server:
            target = Target(host="127.0.0.1", port=server.port, model="m")
            options = BenchOptions(label="mine", slo=Slo(ttft_s=10.0), warmup_s=0.2, workload={"rate": 20})
            return await run_bench(plan(12, rate=20.0), target, options, progress=shown.append)

    result = uvloop.run(main())
    summary = result.summary
    assert (result.label, result.model, result.workload) == ("mine", "m", {"rate": 20})
    assert (summary.requests, summary.succeeded, summary.warming) == (8, 8, 4)
    assert summary.hit_rate == 0.25
    assert summary.attainment == 1.0
    assert sum(summary.endpoints.values()) == 8
    assert shown
    assert shown[-1].sent >= shown[0].sent


# -- the verb


@contextmanager
def serving(behave=None):
    """A server in a thread of its own, for `bench.run`, which has an event loop of its own."""
    ready, box = threading.Event(), {}

    async def main():
        async with Server(behave) as server:
            box.update(server=server, loop=asyncio.get_running_loop(), stop=asyncio.Event())
            ready.set()
            await box["stop"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(10)
    try:
        yield box["server"]
    finally:
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join(10)
        assert not thread.is_alive()


def verb(*words):
    parser = argparse.ArgumentParser()
    bench.configure(parser)
    return bench.run(parser.parse_args([str(word) for word in words]))


SHORT = ("--requests", 6, "--rate", 100, "--suffix-tokens", 8, "--output-tokens", 3)


def test_the_verb_prints_tables_and_writes_files_that_compare(tmp_path, capsys):
    with serving() as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        for name in ("a", "b"):
            files = ("--json", tmp_path / f"{name}.json", "--html", tmp_path / f"{name}.html")
            assert verb("--url", url, *SHORT, "--label", name, "--slo-ttft-ms", 10000, "--api-key", "k", *files) == 0
    assert {body["model"] for body in server.bodies} == {"first"}
    assert all("authorization: Bearer k" in head for head in server.heads)
    assert "goodput" in capsys.readouterr().out
    assert verb("--compare", tmp_path / "a.json", tmp_path / "b.json", "--html", tmp_path / "both.html") == 0
    assert "TTFT p90" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "both.html").read_text()
    described = json.loads((tmp_path / "a.json").read_bytes())["workload"]
    assert (described["requests"], described["suffix_tokens"], described["trace"]) == (6, "8", None)


def test_a_trace_is_replayed_with_equal_ids_as_equal_text(tmp_path):
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 100 * n, "input_length": 1030, "output_length": 4, "hash_ids": [0, 1, n]} for n in range(2, 6)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving() as server:
        words = ("--trace", trace, "--speedup", 10, "--skip", 1, "--limit", 2, "--scale-lengths", 0.5)
        assert verb("--url", f"127.0.0.1:{server.port}", *words) == 0
    first, second = (body["messages"][0]["content"] for body in server.bodies)
    assert len(first) == 4 * (256 + 256 + 3)
    assert first[: 4 * 512] == second[: 4 * 512]
    assert first != second
    assert {body["max_tokens"] for body in server.bodies} == {2}


def test_sessions_and_groups_make_conversations_with_a_shared_prefix():
    with serving() as server:
        words = ("--sessions", 2, "--turns", 2, "--think-s", 0, "--groups", 1, "--prefix-tokens", 16)
        assert (
            verb("--url", f"127.0.0.1:{server.port}", "--model", "m", "--rate", 100, *words, "--output-tokens", "2:3")
            == 0
        )
    assert len(server.bodies) == 4
    assert len({body["messages"][0]["content"] for body in server.bodies}) == 1


def test_the_exit_code_says_that_every_request_failed(capsys):
    async def refuse(number, reader, writer):
        writer.write(b"HTTP/1.1 429 Slow down\r\ncontent-length: 3\r\n\r\nno.")
        return True

    with serving(refuse) as server:
        assert verb("--url", f"127.0.0.1:{server.port}", *SHORT) == 1
    assert "6 x status 429, such as: no." in capsys.readouterr().out


def test_ctrl_c_ends_the_run_with_a_partial_result(tmp_path):
    async def interrupt_at_third(number, reader, writer):
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with serving(interrupt_at_third) as server:
        words = ("--url", f"127.0.0.1:{server.port}", "--duration", 300, "--rate", 20, "--json", tmp_path / "r.json")
        assert verb(*words) in {0, 130}
    assert json.loads((tmp_path / "r.json").read_bytes())["summary"]["succeeded"] >= 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--url", "ftp://x"), "not an http or https address"),
        (("--url", "http://h:99999"), "--url"),
        (("--trace", "/no/such/file"), "cannot read"),
        (("--trace", "t", "--requests", 3), "--limit"),
        (("--requests", 3, "--sessions", 3), "give one of them"),
        (("--compare", "/no/such/file"), "No such file"),
        (("--json", "/no/such/folder/r.json", "--model", "m"), "no folder"),
        (("--url", "127.0.0.1:1"), "is the server up"),
    ],
)
def test_bad_input_is_refused_with_its_place(words, message):
    with pytest.raises(OperatorError, match=message):
        verb(*words)


@pytest.mark.parametrize(
    "words",
    [
        ("--rate", "0"),
        ("--rate", "nan"),
        ("--requests", "1.5"),
        ("--output-tokens", "5:2"),
        ("--output-tokens", "x"),
        ("--header", "no colon"),
        ("--header", "a: b\r\nc: d"),
        ("--header", "a b: c"),
        ("--api-key", "two\nlines"),
        ("--warmup-s", "-1"),
    ],
)
def test_a_malformed_option_is_refused_by_the_parser(words, capsys):
    with pytest.raises(SystemExit):
        verb(*words)
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:8080", "http://h:8080"),
        ("h:8080/v1/", "http://h:8080"),
        ("https://h/openai/v1", "https://h:443/openai"),
        ("http://[::1]:9", "http://[::1]:9"),
    ],
)
def test_a_url_may_come_with_or_without_v1(url, base):
    assert parse_target(url).url == base


def test_the_first_model_is_asked_for():
    with serving() as server:
        target = Target(host="127.0.0.1", port=server.port)
        assert first_model(target) == "first"
        with pytest.raises(OperatorError, match="cannot list the models"):
            first_model(replace(target, port=1))
