"""`beaconry presets`: whose speed simulated engines can have, and how far each can be trusted."""

import argparse

from rich.console import Console
from rich.table import Column, Table

from beaconry.engine_model.calibrated import CALIBRATED, Calibration
from beaconry.engine_model.presets import FP8_SUFFIX, HARDWARE, MODELS, Provenance, variant


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("name", nargs="*", metavar="MODEL/HARDWARE", help="these only, measured or not")


def run(args: argparse.Namespace) -> int:
    """Print a row per preset; OperatorError for a name that there is none of."""
    known = [variant(name) for name in args.name or CALIBRATED]
    right = ("KV tokens", "step ms", "ITL off by", "TTFT off by", "points")
    table = Table("preset", "", *(Column(name, justify="right") for name in right), "source")
    for one in known:
        idle_ms = 1e3 * one.step_time().seconds(1, 0.0, 0, 0.0)
        row = (one.name, one.provenance.value, f"{one.kv_tokens():,}", f"{idle_ms:.1f}")
        table.add_row(*row, *_measured(one.calibration))
    console = Console()
    console.print(table)
    if not args.name:
        models = ", ".join(model.name for model in MODELS)
        hardware = ", ".join(piece.name for piece in HARDWARE)
        console.print(
            f"Any MODEL/HARDWARE or MODEL/HARDWARExN is a preset; those not listed are {Provenance.FITTED.value} (both sides measured "
            f"elsewhere) or {Provenance.GUESSED.value}.\nModels: {models}; those of two bytes also with {FP8_SUFFIX}.\n"
            f"Hardware: {hardware}.\nErrors are of measurements that were left out of the fit they are compared with.",
            highlight=False,
        )
    return 0


def _measured(calibration: Calibration | None) -> tuple[str, ...]:
    if calibration is None:
        return "-", "-", "0", "first principles"
    ttft = "-" if calibration.ttft_error is None else f"{calibration.ttft_error:.0%}"
    return f"{calibration.itl_error:.0%}", ttft, str(calibration.points), calibration.source
