"""`beaconry serve`: the gateway alone, in front of engines that somebody else runs; their list is re-read when the file changes."""

import argparse
import asyncio
import logging
from pathlib import Path

import msgspec
import uvloop

from beaconry.apps.assemble import Gateway
from beaconry.apps.ending import Ending
from beaconry.apps.listen_options import add_listen_options
from beaconry.config.gateway import GatewayConfig
from beaconry.io.endpoint_file import EndpointFile, read_gateway_config
from beaconry.tenancy.rewrites import Rewrites
from beaconry.values.errors import OperatorError

_LOG = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="gateway configuration, YAML")
    add_listen_options(parser, None, None)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop. 0: stopped; 1: could not start. Raises OperatorError for a bad file."""
    loaded = read_gateway_config(args.config)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")  # standard error
    given = {"host": args.host, "port": args.port}
    listen = msgspec.structs.replace(
        loaded.listen, **{name: value for name, value in given.items() if value is not None}
    )
    config = msgspec.structs.replace(loaded, listen=listen)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(args.config, loaded, config))
        except OperatorError as fault:
            _LOG.error("%s", fault)
            return 1
    return 0


async def _serve(path: Path, loaded: GatewayConfig, config: GatewayConfig) -> None:
    """Run one gateway from start to drain. Raises OperatorError if it cannot start."""
    ending = Ending()
    ending.listen()
    gateway = Gateway(config)
    await gateway.start()
    try:
        file = EndpointFile(
            path,
            loaded,
            tell=gateway.tell,
            reconfigure=gateway.reconfigure,
            refused=lambda fault: _LOG.error("not taken over: %s", fault),
        )
        address = f"http://{config.listen.host}:{gateway.port}/v1"
        _LOG.info("serving %d endpoints of %s at %s", len(config.endpoints), path, address)
        for name, target in Rewrites(config.models).unserved(endpoint.model for endpoint in config.endpoints):
            _LOG.warning("models.%s: no endpoint serves its target %s; requests for it are answered 404", name, target)
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(file.follow())
            await ending.asked.wait()
            following.cancel()
    finally:
        running = gateway.statistics().in_flight
        _LOG.info("stopping: %d requests finish; the same signal again cuts them off", running)
        await ending.drain(gateway, config.deadlines.drain_s)
        _LOG.info("stopped")
