"""The doctor before engines that hand KV over to each other, and before some that were not told to."""

import asyncio
import json
from contextlib import AsyncExitStack

from beaconry.cli import main
from beaconry.io.engine.kv_params import KvRole
from tests.loopback.engine_client import on_loop, running
from tests.loopback.test_engine_handover import options_of

HOST = "127.0.0.1"


async def found(tmp_path, capsys, prefill, decode, *options):
    """The exit status, and the decode endpoint's checks of KV; both engines with these hand-over options."""
    async with AsyncExitStack() as stack:
        lines = []
        for name, role, settings in (("p", "prefill", prefill), ("d", "decode", decode)):
            _, port = await stack.enter_async_context(running(**({"kv_transfer": settings} if settings else {})))
            lines.append(f"  - {{name: {name}, role: {role}, host: {HOST}, port: {port}, model: tiny, engine: sim}}\n")
        file = tmp_path / "gateway.yaml"
        file.write_text("endpoints:\n" + "".join(lines))
        status = await asyncio.to_thread(main, ["doctor", "--config", str(file), "--json", *options])
    one, two = json.loads(capsys.readouterr().out)
    assert not [check for check in one["checks"] if check["name"].startswith("KV of")]
    return status, [check for check in two["checks"] if check["name"] == "KV of p"]


@on_loop
async def test_a_pair_that_hands_over_is_well(tmp_path, capsys):
    status, checks = await found(tmp_path, capsys, options_of(KvRole.PRODUCER), options_of(KvRole.CONSUMER))
    assert (status, [check["state"] for check in checks]) == (0, ["ok"])
    assert "tokens fetched" in checks[0]["told"]


@on_loop
async def test_a_prefill_engine_without_its_flag_is_told_so(tmp_path, capsys):
    status, (check,) = await found(tmp_path, capsys, None, options_of(KvRole.CONSUMER))
    assert (status, check["state"]) == (1, "failed")
    assert "p answers 200, and names no KV" in check["told"]
    assert "kv_producer" in check["remedy"]


@on_loop
async def test_a_decode_engine_that_computes_instead_of_fetching_is_warned_of(tmp_path, capsys):
    status, (check,) = await found(tmp_path, capsys, options_of(KvRole.PRODUCER), None)
    assert (status, check["state"]) == (0, "warning")
    assert "kv_consumer" in check["remedy"]


@on_loop
async def test_a_decode_engine_that_cannot_fetch_is_a_failure(tmp_path, capsys):
    status, (check,) = await found(tmp_path, capsys, options_of(KvRole.PRODUCER), options_of(KvRole.PRODUCER))
    assert (status, check["state"]) == (1, "failed")
    assert "d cannot fetch: it answers 4" in check["told"]


@on_loop
async def test_without_requests_pairs_are_left_alone(tmp_path, capsys):
    status, checks = await found(tmp_path, capsys, None, None, "--no-requests")
    assert (status, checks) == (0, [])
