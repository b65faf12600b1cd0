"""What all benchmark modules share: their two options, tables of figures, and the JSON file."""

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec


def options(description: str) -> argparse.ArgumentParser:
    """A parser with `--smoke` and `--json`; a module may add its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--smoke", action="store_true", help="a short run: the same figures, less sure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under columns, the first one to the left, the others to the right."""
    texts = [list(columns), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(columns))]
    print(f"\n{title}")
    for row in texts:
        print(
            "  ".join(
                text.rjust(width) if i else text.ljust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            )
        )


def cell(value: object) -> str:
    """One figure: three significant digits, "-" for what could not be measured."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def median(values: Iterable[float]) -> float | None:
    """The median, None of nothing."""
    kept = list(values)
    return statistics.median(kept) if kept else None


def save(path: Path | None, figures: object) -> None:
    """Write figures as JSON, if there is a path."""
    if path is not None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
