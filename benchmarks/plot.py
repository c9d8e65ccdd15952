"""Tables for people and a plot, made from what a benchmark printed.

    venv/bin/python -m benchmarks.convert | tee RESULT.txt
    venv/bin/python -m benchmarks.plot RESULT.txt docs/conversion.svg

Prints the tables and writes the plot; `benchmarks.run`'s and
`benchmarks.quality`'s results, too. Of one program run for one model after the other (`--only`)
all results may be given.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import convert_report, quality_report, run_report


def read(file: Path) -> dict[str, Any]:
    """The result in the last line of what a benchmark printed."""
    document: dict[str, Any] = json.loads(file.read_text("utf-8").strip().splitlines()[-1])
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("result", type=Path, nargs="+", help="what the benchmark printed")
    parser.add_argument("svg", type=Path, help="the plot")
    args = parser.parse_args()
    document, *others = map(read, args.result)
    for other in others:
        document["models"] |= other["models"]
    reports: dict[str, Any] = {
        "convert": convert_report,
        "run": run_report,
        "quality": quality_report,
    }
    report = reports[document["benchmark"]]
    args.svg.write_text(report.svg(document), encoding="utf-8")
    print(report.tables(document))


if __name__ == "__main__":
    main()
