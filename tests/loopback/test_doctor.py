"""The doctor before healthy engines, sick ones, and services that are no engines at all."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from beaconry.apps.doctor import subjects_of
from beaconry.cli import main
from beaconry.config.gateway import EndpointConfig, GatewayConfig, Health, Tokens
from beaconry.engine_model.values import EngineSettings
from beaconry.io.engine.events import KvEventsOptions
from beaconry.io.examination import SAMPLES, Examination
from beaconry.io.upstream import UpstreamPool
from beaconry.values.block_hash import DEFAULT_SEED
from beaconry.values.check import State
from beaconry.values.endpoint import Endpoint, EngineType, KvEventsAddress
from beaconry.values.kv_events import KvBlocks
from tests.loopback.engine_client import on_loop, running

HOST = "127.0.0.1"
OK, WARNING, FAILED, SKIPPED = State.OK, State.WARNING, State.FAILED, State.SKIPPED
PUBLISHED = KvEventsOptions(port=0, replay_port=0)


async def doctor(*arguments):
    """Run the command beside the engines of this loop."""
    return await asyncio.to_thread(main, ["doctor", *map(str, arguments)])


async def examined(port, local=None, *, may_send=True, timeout_s=10.0, **fields):
    """The checks of one endpoint, by check; of several of one name the worst."""
    endpoint = Endpoint(**{"name": "e", "host": HOST, "port": port, "model": "m", "engine": EngineType.VLLM, **fields})
    async with asyncio.TaskGroup() as tasks:
        pool = UpstreamPool(HOST, port, timeout_s, tasks.create_task)
        made = Examination(endpoint, pool, local, health=Health(), timeout_s=timeout_s, may_send=may_send)
        result = await made.run()
        pool.abort()
    order = list(State)
    found = {}
    for check in result.checks:
        if check.name not in found or order.index(check.state) > order.index(found[check.name].state):
            found[check.name] = check
    return found


# -- simulated engines


@on_loop
async def test_a_healthy_engine_passes_all_checks(capsys):
    async with running(kv_events=PUBLISHED) as (_, port):
        assert await doctor("--url", f"http://{HOST}:{port}", "--json") == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert {check["name"]: check["state"] for check in one["checks"]} == dict.fromkeys(
        (
            "reachable",
            "version",
            "model",
            "metrics",
            "block size",
            "tokens",
            "clock",
            "usage",
            "KV events",
            "block hashes",
        ),
        "ok",
    )


@on_loop
async def test_the_table_names_checks_and_remedies_and_the_status_tells_scripts(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    async with running() as (_, port):
        assert await doctor("--url", f"{HOST}:{port}", "--url", f"{HOST}:1", "--no-requests") == 1
    said = capsys.readouterr().out
    assert "no requests were allowed" in said
    assert "exact routing needs them" in said
    assert "→ is the engine running" in said
    assert "2 engines: 1 checks failed, 0 warnings" in said


@on_loop
async def test_a_configuration_is_examined_endpoint_by_endpoint(tmp_path, capsys):
    async with running(kv_events=PUBLISHED) as (_, port):
        events = await _where(port)
        file = tmp_path / "gateway.yaml"
        file.write_text(
            f"""
endpoints:
  - {{name: right, host: {HOST}, port: {port}, model: tiny, engine: sim,
      kvEvents: {{endpoint: "{events["endpoint"]}", replay: "{events["replay_endpoint"]}"}},
      kvBlocks: {{blockTokens: 16, algorithm: fast, seed: {DEFAULT_SEED}}}}}
  - {{name: wrong, host: {HOST}, port: {port}, model: alias, engine: sim,
      kvEvents: {{endpoint: "{events["endpoint"]}"}},
      kvBlocks: {{blockTokens: 32, algorithm: sha256, seed: "0"}}}}
"""
        )
        assert await doctor("--config", file, "--json") == 1
    right, wrong = json.loads(capsys.readouterr().out)
    assert {check["state"] for check in right["checks"]} == {"ok"}
    told = {check["name"]: check for check in wrong["checks"]}
    assert "kvBlocks.blockTokens: 16" in told["block size"]["remedy"]
    assert told["KV events"]["state"] == "warning"
    assert "replay" in told["KV events"]["remedy"]
    assert told["block hashes"]["state"] == "failed"
    assert "The engine uses fast" in told["block hashes"]["remedy"]


async def _where(port):
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"GET /kv_event_sources HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    body = (await reader.read()).partition(b"\r\n\r\n")[2]
    writer.close()
    return json.loads(body)["0"]


@on_loop
async def test_events_that_do_not_arrive_are_a_failure_with_the_engines_flags(capsys):
    async with running() as (_, port):
        nowhere = KvEventsAddress(endpoint="tcp://127.0.0.1:1", replay="tcp://127.0.0.1:1")
        found = await examined(port, model="tiny", engine=EngineType.SIM, kv_events=nowhere, timeout_s=0.5)
    assert found["KV events"].state is FAILED
    assert "nothing came" in found["KV events"].told
    assert "--kv-events-config" in found["KV events"].remedy


@on_loop
async def test_an_engine_without_prefix_cache_is_told_so(capsys):
    settings = EngineSettings(num_blocks=256, prefix_caching=False)
    async with running(settings=settings) as (_, port):
        found = await examined(port, model="tiny", engine=EngineType.SIM)
    assert found["prefix cache"].state is FAILED
    assert found["usage"].state is WARNING
    assert "not cached the second time" in found["usage"].told


# -- what is wrong with others


class Service:
    """Answers by path; what is not listed is 404."""

    def __init__(self, **pages):
        self.pages = {"/health": "", "/v1/models": {"data": [{"id": "m"}]}, "/version": {"version": "0.32.0"}} | pages
        self.asked = []

    async def serve(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split()[1].decode()
                lines = head.decode().lower().split("\r\n")
                length = [int(line[15:]) for line in lines if line.startswith("content-length:")]
                body = await reader.readexactly(length[0]) if length else b""
                self.asked.append((path, body))
                page = self.pages.get(path)
                page = page(body) if callable(page) else page
                data = page.encode() if isinstance(page, str) else json.dumps(page).encode()
                status = 404 if page is None else 200
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(data), data))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def service(**pages):
    made = Service(**pages)
    server = await asyncio.start_server(made.serve, HOST, 0)
    try:
        yield made, server.sockets[0].getsockname()[1]
    finally:
        server.close()


LOAD = "vllm:num_requests_running 1\nvllm:num_requests_waiting 2\nvllm:kv_cache_usage_perc 0.5\n"
CONFIG = 'vllm:cache_config_info{block_size="32",prefix_caching_hash_algo="sha256_cbor"} 1.0\n'


def completion(created, **details):
    return {"created": created, "usage": {"prompt_tokens": 9, "prompt_tokens_details": details or None}}


@on_loop
async def test_nothing_at_the_address_ends_the_examination_there():
    found = await examined(1)
    assert list(found) == ["reachable"]
    assert found["reachable"].state is FAILED


@on_loop
async def test_a_service_that_is_no_engine_is_recognised():
    async with service(**{"/v1/models": "<html>", "/version": None}) as (made, port):
        found = await examined(port)
        assert not any(path.startswith("/v1/completions") for path, _ in made.asked)
    assert found["version"].state is WARNING
    assert found["model"].state is FAILED
    assert "another service" in found["model"].remedy
    assert found["metrics"].state is WARNING
    assert "usage" not in found


@on_loop
async def test_a_wrong_model_and_a_wrong_engine_type_are_told_with_the_right_ones():
    async with service() as (_, port):
        found = await examined(port, model="other", engine=EngineType.SIM)
    assert "engine: vllm" in found["version"].remedy
    assert "'other' is not served, but: m" in found["model"].told


@on_loop
async def test_an_engine_that_tells_half_of_its_load_and_another_hash_is_warned_of():
    async with service(**{"/metrics": LOAD.replace("kv_cache", "x") + CONFIG}) as (_, port):
        blocks = KvBlocks(block_tokens=32, algorithm="sha256", seed=DEFAULT_SEED)
        found = await examined(port, kv_blocks=blocks, may_send=False)
    assert found["metrics"].state is WARNING
    assert "kv_usage" in found["metrics"].told
    assert found["block size"].state is FAILED
    assert "--prefix-caching-hash-algo sha256" in found["block size"].remedy
    assert found["usage"].state is SKIPPED


@on_loop
async def test_an_engine_that_does_not_generate_is_a_failure():
    async with service(**{"/metrics": LOAD}) as (_, port):
        found = await examined(port)
    assert found["metrics"].state is OK
    assert found["usage"].state is FAILED
    assert "404" in found["usage"].told


@on_loop
async def test_a_wrong_clock_and_unreported_cached_tokens_are_warned_of():
    async with service(**{"/v1/completions": completion(0)}) as (_, port):
        found = await examined(port)
    assert found["clock"].state is WARNING
    assert "s from ours" in found["clock"].told
    assert found["usage"].state is WARNING
    assert "--enable-prompt-tokens-details" in found["usage"].remedy


@on_loop
async def test_tokens_that_differ_from_the_engines_are_told_with_their_place():
    from beaconry.wire.tokens import TokenSource

    class Ours:
        kind = TokenSource.LOCAL

        def begin(self, ask, body):
            from array import array

            return array("I", [1, 2, 3]), ()

    async with service(**{"/tokenize": {"tokens": [1, 2, 4, 5]}}) as (_, port):
        found = await examined(port, Ours(), may_send=False)
    assert found["tokens"].state is FAILED
    assert "3 tokens here, 4 there; they differ from token 2 on" in found["tokens"].told
    async with service() as (_, port):
        found = await examined(port, Ours(), may_send=False)
    assert found["tokens"].state is SKIPPED


@on_loop
async def test_without_a_local_tokenizer_the_engine_is_asked_for_tokens():
    async with service(**{"/tokenize": {"tokens": [1]}}) as (_, port):
        assert "local tokens take no round trip" in (await examined(port, may_send=False))["tokens"].told
    async with service() as (_, port):
        assert (await examined(port, may_send=False))["tokens"].state is WARNING


def test_samples_are_of_all_kinds():
    assert {name for name, _, _ in SAMPLES} == {"plain prompt", "one message", "conversation", "parts", "tools"}


# -- the command line


@pytest.mark.parametrize("url", ["https://host:1", "http://host:1/other", "http://", "host:port", "http://h:99999"])
def test_an_address_that_is_none_is_refused(url, capsys):
    assert main(["doctor", "--url", url]) == 2
    assert "give an engine's address" in capsys.readouterr().err


def test_options_that_do_not_fit_are_refused(tmp_path, capsys):
    file = tmp_path / "gateway.yaml"
    file.write_text("policy: random\n")
    assert main(["doctor", "--config", str(file)]) == 2
    assert "lists no endpoints" in capsys.readouterr().err
    assert main(["doctor", "--config", str(file), "--model-dir", "x"]) == 2
    assert main(["doctor", "--url", "http://h:1", "--timeout", "0"]) == 2


@on_loop
async def test_a_models_directory_that_cannot_be_used_fails_its_endpoints(tmp_path, capsys):
    async with service() as (_, port):
        assert await doctor("--url", f"http://{HOST}:{port}", "--model-dir", tmp_path, "--json") == 1
    (one,) = json.loads(capsys.readouterr().out)
    assert one["checks"][0]["name"] == "tokenizer"
    assert "tokenizer.json" in one["checks"][0]["told"]


def test_the_directory_of_an_endpoints_model_comes_from_the_configuration():
    config = GatewayConfig(
        endpoints=(
            EndpointConfig(name="a", host="h", port=1, model="m"),
            EndpointConfig(name="b", host="h", port=2, model="n"),
        ),
        tokens=Tokens(model_dirs={"m": "/models/m"}),
    )
    assert [str(subject.model_dir) for subject in subjects_of(config)] == ["/models/m", "None"]
