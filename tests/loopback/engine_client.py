"""A simulated engine to talk to, in this process or in one of its own, and a plain client that hides nothing of the wire."""

import asyncio
import json
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from functools import wraps

import uvloop
from prometheus_client.parser import text_string_to_metric_families

from beaconry.engine_model.step_time import LinearStepTime
from beaconry.engine_model.values import EngineSettings
from beaconry.io.engine.options import EngineOptions
from beaconry.io.engine.server import serve_engine

FAST = LinearStepTime(fixed_s=0.0005)
PATIENCE_S = 20.0
"""Bound on every wait; reached only when something is broken."""


def on_loop(test):
    """Make an async test one that pytest can run, on the event loop of production."""

    @wraps(test)
    def run(*args, **kwargs):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asyncio.wait_for(test(*args, **kwargs), 2 * PATIENCE_S))

    return run


def options(**changes):
    knobs = {
        "models": ("tiny", "alias"),
        "settings": EngineSettings(num_blocks=256),
        "step_time": FAST,
        "max_model_len": 2048,
    }
    return EngineOptions(**(knobs | changes))


@asynccontextmanager
async def running(**changes):
    engine, server = await serve_engine(options(**changes), "127.0.0.1", 0)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield engine, server.port
    finally:
        await server.abort_all()
        await engine.close()
        engine.generation.engine.check()


class Reply:
    def __init__(self, raw):
        head, _, body = raw.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        self.body = _dechunk(body) if self.headers.get("transfer-encoding") == "chunked" else body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def events(self):
        lines = [line for line in self.body.decode().split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line[6:]) for line in lines[:-1]]


def _dechunk(data):
    parts, at = [], 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 4 + size


async def start(port, path, body=None, method=None, headers=()):
    """Send a request; returns the connection's two ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    lines = [f"{method} {path} HTTP/1.1", "host: x", "connection: close", f"content-length: {len(data)}", *headers]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
    return reader, writer


async def call(port, path, body=None, method=None, headers=()):
    reader, writer = await start(port, path, body, method, headers)
    raw = await reader.read()
    writer.close()
    return Reply(raw)


async def metrics(port):
    text = (await call(port, "/metrics")).body.decode()
    return {
        (sample.name, *sorted(v for k, v in sample.labels.items() if k not in ("engine", "model_name"))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


async def until(condition):
    """Wait for what no callback announces; the caller's timeout bounds it."""
    while not condition():
        await asyncio.sleep(0.002)


async def until_loaded(port, request=None):
    """Wait until something runs; or a task has ended, which may be as soon."""
    while (await call(port, "/load")).json["server_load"] == 0 and (request is None or not request.done()):
        await asyncio.sleep(0.002)


async def read_to_the_end(reader):
    """All bytes, whether the peer ends or resets the connection."""
    data = b""
    with suppress(ConnectionError):
        while chunk := await reader.read(1 << 16):
            data += chunk
    return data


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me a story, please."}]}
PROMPT = {"model": "tiny", "prompt": "once upon a time", "ignore_eos": True}


def fault(**fields):
    return [f"x-beaconry-fault: {json.dumps(fields)}"]


@asynccontextmanager
async def process(*flags):
    """`beaconry engine` as a process; yields it and its port."""
    argv = [sys.executable, "-m", "beaconry", "engine", "--port", "0", "--model", "tiny", *flags]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: ASYNC220
    try:
        async with asyncio.timeout(PATIENCE_S):
            line = await asyncio.to_thread(child.stdout.readline)
            assert line.startswith("ready http://127.0.0.1:"), child.stderr.read()
            yield child, int(line.rpartition(":")[2])
    finally:
        child.kill()
        child.communicate()
