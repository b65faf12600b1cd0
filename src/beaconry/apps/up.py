"""`beaconry up`: a model's engines and their gateway on this machine, as one model server."""

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec
import uvloop

from beaconry.apps.listen_options import add_listen_options
from beaconry.apps.local_fleet import Fleet
from beaconry.config.gateway import Listen
from beaconry.io.config_file import read_yaml
from beaconry.manifests.model_service import Metadata, Model, ModelService, Pool, SimEngine, Spec
from beaconry.values.errors import OperatorError

DEFAULT_ENGINES = 4


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("spec", nargs="?", metavar="SPEC", help="ModelService YAML file (default: simulated engines)")
    add_listen_options(parser, Listen().host, Listen().port)
    parser.add_argument(
        "--engines", type=int, metavar="N", help="replicas of the only pool (default: as in SPEC, or 4)"
    )
    parser.add_argument("--plain", action="store_true", help="lines instead of a live screen")


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop. 0: stopped; 1: could not start. Raises OperatorError for a bad spec or option."""
    service = service_of(args.spec, args.engines)
    listen = Listen(host=args.host, port=args.port)
    fleet = Fleet(service, listen, plain=args.plain or not sys.stdout.isatty())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(fleet.serve())
        except OperatorError as fault:
            print(f"beaconry up: {fault}", file=sys.stderr)
            return 1
    return 0


def default_service(engines: int = DEFAULT_ENGINES) -> ModelService:
    """What `up` serves without a spec, `examples/simulated.yaml`."""
    return ModelService(
        api_version="beaconry/v1alpha1",
        kind="ModelService",
        metadata=Metadata(name="demo"),
        spec=Spec(
            model=Model(uri="hf://meta-llama/Llama-3.1-8B-Instruct", name="llama-3.1-8b"),
            engine=SimEngine(preset="llama-3.1-8b/h100"),
            pools=(Pool(name="engine", replicas=engines),),
        ),
    )


def service_of(path: str | None, engines: int | None) -> ModelService:
    """The spec of a file, or the default, with `engines` replicas if given. Raises OperatorError."""
    service = default_service() if path is None else _read(Path(path))
    if engines is None:
        return service
    if engines < 1:
        raise OperatorError(f"--engines {engines}: at least one is needed")
    if len(service.spec.pools) > 1:
        raise OperatorError(f"--engines: {path} has {len(service.spec.pools)} pools; set replicas there")
    pool = msgspec.structs.replace(service.spec.pools[0], replicas=engines)
    return msgspec.structs.replace(service, spec=msgspec.structs.replace(service.spec, pools=(pool,)))


def _read(path: Path) -> ModelService:
    """A spec, with the tenants file found beside it. Raises OperatorError."""
    service = read_yaml(path, ModelService)
    router = msgspec.structs.replace(service.spec.router, tenants=service.spec.router.tenants.beside(path))
    return msgspec.structs.replace(service, spec=msgspec.structs.replace(service.spec, router=router))
