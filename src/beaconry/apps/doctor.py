"""`beaconry doctor`: examine every engine, and say what to do about what is wrong. For people, and by its exit status for scripts."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from rich.text import Text

from beaconry.config.gateway import GatewayConfig, Health
from beaconry.disagg.connectors import CONNECTORS, Connector
from beaconry.io.endpoint_file import endpoints_of, read_gateway_config
from beaconry.io.examination import Examination
from beaconry.io.fetch import fetch
from beaconry.io.local_tokens import LocalTokens
from beaconry.io.model_directory import local_tokens
from beaconry.io.pair_examination import PairExamination
from beaconry.io.sim_tokens import sim_tokens
from beaconry.io.upstream import UpstreamPool
from beaconry.values.check import Check, Examined, State, failed
from beaconry.values.endpoint import Endpoint, EngineType, Role
from beaconry.values.errors import EngineError, OperatorError
from beaconry.wire.engine_pages import parse_models, parse_version

AT_ONCE = 8
"""Endpoints examined at the same time."""
_GENERATING = frozenset({"tokenizer", "reachable", "model", "usage"})
"""Checks without which no request is answered."""
_MARKS = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "bold red", State.SKIPPED: "dim"}


class Subject(Struct, frozen=True, kw_only=True):
    """One engine to examine."""

    endpoint: Endpoint
    health: Health
    model_dir: Path | None = None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    add = parser.add_argument
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--config", type=Path, metavar="FILE", help="gateway configuration: all its endpoints")
    group.add_argument(
        "--url", action="append", metavar="URL", help="one engine, for example http://127.0.0.1:8000; may be repeated"
    )
    add("--model-dir", type=Path, metavar="DIR", help="with --url: the model's directory, to compare tokens")
    add("--timeout", type=float, default=5.0, metavar="SECONDS", help="for each question (default: %(default)s)")
    add("--no-requests", action="store_true", help="send no requests: leaves out usage, KV events and block hashes")
    add("--json", action="store_true", help="checks as JSON")


def run(args: argparse.Namespace) -> int:
    """Examine. 0: nothing has failed; 1: something has. Raises OperatorError for a bad file or option."""
    if args.timeout <= 0:
        raise OperatorError(f"--timeout {args.timeout:g}: must be above 0")
    if args.model_dir is not None and args.url is None:
        raise OperatorError("--model-dir: with --config, directories are given in its tokens.modelDirs")
    examined = asyncio.run(_examine_all(args))
    if args.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(examined)).decode() + "\n")
    else:
        _show(examined, Console())
    return 0 if all(one.healthy for one in examined) else 1


def subjects_of(config: GatewayConfig) -> list[Subject]:
    """What a configuration lists."""
    dirs = config.tokens.model_dirs
    return [
        Subject(
            endpoint=endpoint,
            health=config.health,
            model_dir=Path(dirs[endpoint.model]) if endpoint.model in dirs else None,
        )
        for endpoint in endpoints_of(config)
    ]


async def _examine_all(args: argparse.Namespace) -> list[Examined]:
    connector = None
    if args.config is not None:
        config = read_gateway_config(args.config)
        connector = None if args.no_requests else CONNECTORS[config.disaggregation.connector]
        subjects = subjects_of(config)
        if not subjects:
            raise OperatorError(f"{args.config}: it lists no endpoints")
    else:
        subjects = [_subject_at(url, args.model_dir) for url in args.url]
    places = asyncio.Semaphore(AT_ONCE)
    with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as executor:
        locals_ = _Locals(executor)
        async with asyncio.TaskGroup() as tasks:

            async def one(subject: Subject) -> Examined:
                async with places:
                    return await _examine(subject, locals_, tasks, args)

            running = [tasks.create_task(one(subject)) for subject in subjects]
    examined = [task.result() for task in running]
    if connector is None:
        return examined
    endpoints = [subject.endpoint for subject in subjects]
    return await _with_pairs(examined, endpoints, connector, args.timeout)


async def _with_pairs(
    examined: Sequence[Examined], endpoints: Sequence[Endpoint], connector: Connector, timeout_s: float
) -> list[Examined]:
    """Add to each endpoint that answers what becomes of the KV of each that prefills, where both generate. One pair after the other."""
    pools: dict[str, UpstreamPool] = {}
    working = [endpoint for endpoint, one in zip(endpoints, examined, strict=True) if _generates(one)]
    found: dict[str, list[Check]] = {}
    async with asyncio.TaskGroup() as tasks:

        def pool_of(endpoint: Endpoint) -> UpstreamPool:
            if endpoint.name not in pools:
                pools[endpoint.name] = UpstreamPool(endpoint.host, endpoint.port, timeout_s, tasks.create_task)
            return pools[endpoint.name]

        for source, reader in product(working, working):
            if source.role is Role.PREFILL and reader.role is not Role.PREFILL and source.model == reader.model:
                pair = PairExamination(source, reader, pool_of, connector, timeout_s)
                found.setdefault(reader.name, []).append(await pair.run())
        for pool in pools.values():
            pool.abort()
    return [
        msgspec.structs.replace(one, checks=(*one.checks, *found.get(endpoint.name, ())))
        for endpoint, one in zip(endpoints, examined, strict=True)
    ]


def _generates(one: Examined) -> bool:
    return not any(check.state is State.FAILED and check.name in _GENERATING for check in one.checks)


async def _examine(
    subject: Subject, locals_: "_Locals", tasks: asyncio.TaskGroup, args: argparse.Namespace
) -> Examined:
    endpoint = subject.endpoint
    pool = UpstreamPool(endpoint.host, endpoint.port, args.timeout, tasks.create_task)
    try:
        if args.url is not None:
            endpoint = await _recognised(endpoint, pool, args.timeout)
        try:
            local = locals_.of(endpoint, subject.model_dir)
        except OperatorError as error:
            unusable = failed("tokenizer", str(error), "see tokens.modelDirs")
            return Examined(endpoint=endpoint.name, address=endpoint.address, checks=(unusable,))
        examination = Examination(
            endpoint, pool, local, health=subject.health, timeout_s=args.timeout, may_send=not args.no_requests
        )
        return await examination.run()
    finally:
        pool.abort()


def _subject_at(url: str, model_dir: Path | None) -> Subject:
    """An address; what is there shows when it is asked."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port or parts.path not in ("", "/", "/v1", "/v1/"):
        raise OperatorError(f"--url {url}: give an engine's address, for example http://127.0.0.1:8000")
    endpoint = Endpoint(name=f"{parts.hostname}:{port}", host=parts.hostname, port=port, model="")
    return Subject(endpoint=endpoint, health=Health(), model_dir=model_dir)


async def _recognised(endpoint: Endpoint, pool: UpstreamPool, timeout_s: float) -> Endpoint:
    """The endpoint with what it says it is: engine, and its first model."""

    async def page(path: str) -> bytes:
        try:
            answer = await fetch(pool, path, endpoint.address, timeout_s, 1_048_576)
        except EngineError:
            return b""
        return answer.body

    version = parse_version(await page("/version"))
    models = parse_models(await page("/v1/models"))
    engine = EngineType.SIM if version is not None and "beaconry" in version else EngineType.VLLM
    model = models.names[0] if models is not None and models.names else ""
    return msgspec.structs.replace(endpoint, engine=engine, model=model)


class _Locals:
    """Local tokenizers, loaded once each."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self._by_directory: dict[Path, LocalTokens] = {}

    def of(self, endpoint: Endpoint, directory: Path | None) -> LocalTokens | None:
        """What tells an endpoint's tokens here; None if nothing does. OperatorError for a directory that cannot be used."""
        if endpoint.engine is EngineType.SIM:
            return sim_tokens(self._executor)
        if directory is None:
            return None
        if directory not in self._by_directory:
            self._by_directory[directory] = local_tokens(directory, self._executor)
        return self._by_directory[directory]


def _show(examined: Sequence[Examined], console: Console) -> None:
    for one in examined:
        title = one.endpoint if one.endpoint == one.address else f"{one.endpoint} ({one.address})"
        table = Table(
            title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 1)
        )
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for check in one.checks:
            told = Text(check.told)
            if check.remedy:
                told.append(f"\n→ {check.remedy}", style="italic")
            table.add_row(Text(check.state.value, style=_MARKS[check.state]), Text(check.name), told)
        console.print(table)
    counts = [check.state for one in examined for check in one.checks]
    console.print(
        f"{len(examined)} engines: {counts.count(State.FAILED)} checks failed, {counts.count(State.WARNING)} warnings",
        highlight=False,
    )
