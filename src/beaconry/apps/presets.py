"""`beaconry presets`: whose speed simulated engines can have, and how far each can be trusted."""

import argparse

from rich.console import Console
from rich.table import Column, Table

from beaconry.engine_model.calibrated import CALIBRATED, Calibration
from beaconry.engine_model.presets import FP8_SUFFIX, HARDWARE, MODELS, Provenance
from beaconry.io.preset_file import read_preset


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("name", nargs="*", metavar="MODEL/HARDWARE|FILE", help="these only, measured or not")


def run(args: argparse.Namespace) -> int:
    """Print a row per preset; OperatorError for a name that there is none of."""
    right = ("KV tokens", "step ms", "ITL off by", "TTFT off by", "points")
    known = [read_preset(name) for name in args.name or CALIBRATED]
    left = (Column(name, no_wrap=True) for name in ("preset", ""))
    table = Table(*left, *(Column(name, justify="right") for name in right))
    for one in known:
        tokens = one.settings.num_blocks * one.settings.block_tokens
        idle_ms = 1e3 * one.step_time.seconds(1, 0.0, 0, 0.0)
        row = (one.name, one.provenance.value, f"{tokens:,}", f"{idle_ms:.1f}")
        table.add_row(*row, *_errors(CALIBRATED.get(one.name)))
    console = Console()
    console.print(table)
    for source in dict.fromkeys(one.source for one in known):
        names = ", ".join(one.name for one in known if one.source == source)
        console.print(f"{names}: {source}", highlight=False)
    if not args.name:
        models = ", ".join(model.name for model in MODELS)
        hardware = ", ".join(piece.name for piece in HARDWARE)
        console.print(
            f"\nAny MODEL/HARDWARE or MODEL/HARDWARExN is a preset; those not listed are {Provenance.FITTED.value} (both sides measured "
            f"elsewhere) or {Provenance.GUESSED.value}. A file that `beaconry fit` has written is a preset too.\n"
            f"Models: {models}; those of two bytes also with {FP8_SUFFIX}.\nHardware: {hardware}.\n"
            "Errors are of measurements that were left out of the fit they are compared with.",
            highlight=False,
        )
    return 0


def _errors(calibration: Calibration | None) -> tuple[str, str, str]:
    if calibration is None:
        return "-", "-", "-"
    ttft = "-" if calibration.ttft_error is None else f"{calibration.ttft_error:.0%}"
    return f"{calibration.itl_error:.0%}", ttft, str(calibration.points)
