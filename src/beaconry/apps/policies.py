"""`beaconry policies`: the scheduling policies that are installed, built-in ones and those of other packages."""

import argparse
import inspect

from beaconry.config.gateway import GatewayConfig
from beaconry.plugins.registry import Registry


def configure(parser: argparse.ArgumentParser) -> None:
    """There are no options."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Print a line per policy: its name and the first line of its description."""
    del args
    registry = Registry.installed()
    for name in registry.names("policy"):
        text = inspect.getdoc(registry.factory("policy", name)) or ""
        default = " (default)" if name == GatewayConfig().policy else ""
        print(f"{name:16} {text.partition(chr(10))[0]}{default}")
    return 0
