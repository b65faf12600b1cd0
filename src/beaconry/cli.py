"""The command line: parsing and help; each verb is one call into `apps/`, imported only when it is used."""

import argparse
import sys
from importlib import import_module

from beaconry import __version__
from beaconry.values.errors import OperatorError

VERBS = {
    "up": "start engines and their gateway on this machine",
    "serve": "run the gateway alone, in front of engines that exist already",
    "engine": "run one simulated engine",
    "bench": "put load on an OpenAI-compatible address and report what came back",
    "fit": "make a preset of an engine from bench results, to simulate it by",
    "simulate": "run a scenario in virtual time: fleets, workloads, faults, policies side by side",
    "plan": "find the cheapest fleet that meets its targets, by simulation",
    "doctor": "examine every engine, and say what to do about what is wrong",
    "key": "make an API key for a tenant, and its hash for the tenants file",
    "policies": "list the scheduling policies",
    "presets": "list whose speed simulated engines can have, and how far it can be trusted",
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Exit status: its own, 2 for a wrong command line or configuration."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="beaconry", description="Serve a fleet of LLM engines as one model server.")
    parser.add_argument("--version", action="version", version=f"beaconry {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for verb, help_text in VERBS.items():
        sub = verbs.add_parser(verb, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        if verb == chosen:
            module = import_module(f"beaconry.apps.{verb}")
            module.configure(sub)
            sub.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    try:
        return int(args.run(args))
    except OperatorError as error:
        print(f"beaconry {args.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
