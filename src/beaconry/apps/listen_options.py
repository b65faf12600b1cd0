"""`--host` and `--port`, the same for every verb that runs a gateway."""

import argparse


def add_listen_options(parser: argparse.ArgumentParser, host: str | None, port: int | None) -> None:
    """Declare both with these defaults; None leaves it to the configuration file."""
    shown_host, shown_port = ("as in the file" if value is None else value for value in (host, port))
    parser.add_argument("--host", default=host, help=f"address where clients connect (default: {shown_host})")
    parser.add_argument(
        "--port", type=_port, default=port, help=f"port where clients connect, 0 for a free one (default: {shown_port})"
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 1 to 65535, or 0 for a free one")
    return int(text)
