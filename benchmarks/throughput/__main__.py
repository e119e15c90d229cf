"""The command line of the benchmark; see benchmarks/throughput/__init__.py."""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import benchmarks.throughput
from benchmarks.throughput.compare import COLUMNS, PEERS, Comparison, run
from benchmarks.throughput.data import MODELS, PROFILES
from benchmarks.throughput.table import markdown
from halos.errors import HalosError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/throughput.csv"
FIGURE = ROOT / "docs/throughput.svg"
LOSSES = ("sft", "dpo", "kto")
SMALL, LARGE = "llama", "smollm2"
FEW = (("sft", "trl-default"), ("dpo", "trl-default"), ("dpo", "trl-best"), ("kto", "trl-default"))
"""What is compared where steps take long, or time is short, on data like HH's."""
TOKENS_PER_MICROBATCH = 1024
"""Ours, on a CPU: matrix products are no faster with more, and memory is more."""

SUMMARY = (
    "{loss} {profile} {model} against {peer}: {ratio_examples_per_s}x the speed ({ratio_min} to {ratio_max}), "
    "{ratio_peak_memory}x the memory; useful work is {useful_share:.0%} of the machine's peak, "
    "{useful_share_unshared:.0%} with prompts unshared"
)


def everything() -> list[Comparison]:
    """The small model: each loss and profile, and packing where lengths differ most. The large one: a few."""
    found = plan([SMALL], LOSSES, list(PROFILES), ("trl-default", "trl-best"))
    packing = Comparison("sft", PROFILES["ultrafeedback"], MODELS[SMALL], "trl-packing")
    at = found.index(replace(packing, peer="trl-best"))
    return [*found[: at + 1], packing, *found[at + 1 :], *few(LARGE)]


def few(model: str) -> list[Comparison]:
    return [Comparison(loss, PROFILES["hh"], MODELS[model], peer) for loss, peer in FEW]


def plan(
    models: Sequence[str], losses: Sequence[str], profiles: Sequence[str], peers: Sequence[str]
) -> list[Comparison]:
    """All comparisons of a choice, those of one training side by side. Packing is for sft alone, and a reference for
    the others."""
    return [
        Comparison(loss, PROFILES[profile], MODELS[model], peer)
        for model in models
        for loss in losses
        for profile in profiles
        for peer in peers
        if {"trl-packing": loss == "sft", "trl-precomputed": loss != "sft"}.get(peer, True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput", description=benchmarks.throughput.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a few comparisons of 2 pairs; nothing is written")
    choice = parser.add_argument_group("a choice, instead of everything")
    choice.add_argument("--losses", nargs="+", choices=LOSSES)
    choice.add_argument("--profiles", nargs="+", choices=tuple(PROFILES))
    choice.add_argument("--models", nargs="+", choices=tuple(MODELS))
    choice.add_argument("--peers", nargs="+", choices=PEERS)
    parser.add_argument("--pairs", type=int, default=5, help="measured steps of each side (%(default)s)")
    parser.add_argument("--batch", type=int, help="examples of a global batch, even; by default what suits")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side (%(default)s)")
    parser.add_argument("--tokens-per-microbatch", type=int, default=TOKENS_PER_MICROBATCH, help="ours (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where data goes, and stays; by default a temporary folder")
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV to write (%(default)s)")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="figure to draw of it (%(default)s)")
    parser.add_argument(
        "--draw", action="store_true", help="measure nothing; draw --output again and print the table of docs/speed.md"
    )
    chosen = parser.parse_args(arguments)
    if chosen.draw:
        draw(chosen.output, chosen.figure)
        print(markdown(chosen.output))
        return
    comparisons = chosen_comparisons(chosen)
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(chosen.threads)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        pairs = 2 if chosen.quick else chosen.pairs
        try:
            rows = run(comparisons, folder, chosen.threads, pairs, chosen.tokens_per_microbatch, chosen.batch)
            write(rows, Path(os.devnull) if chosen.quick else chosen.output)
        except HalosError as error:
            sys.exit(f"error: {error}")
    if not chosen.quick:
        draw(chosen.output, chosen.figure)


def chosen_comparisons(chosen: argparse.Namespace) -> list[Comparison]:
    if chosen.quick:
        found = few(SMALL)
    elif chosen.losses or chosen.profiles or chosen.models or chosen.peers:
        found = plan(chosen.models or [SMALL], chosen.losses or LOSSES, chosen.profiles or list(PROFILES),
                     chosen.peers or PEERS)  # fmt: skip
    else:
        found = everything()
    return found


def write(rows: Iterable[dict[str, Any]], output: Path) -> None:
    """Write each row to a CSV, and print what it says, as soon as it is there."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow(row)
            file.flush()
            print(SUMMARY.format(**row), flush=True)


def draw(results: Path, figure: Path) -> None:
    """The figure of a table of results."""
    from benchmarks.throughput.figure import save

    save(results, figure)


if __name__ == "__main__":
    main()
