"""Memory of the loss layer: log-probabilities from hidden states beside logits of every token at once.

    python -m benchmarks.loss_memory            # 8 sequences of 1024 tokens: 14 GB for the full logits, a minute
    python -m benchmarks.loss_memory --quick    # a quarter of the tokens, 4 GB

Log-probabilities of tokens, from hidden states of 512 numbers and an output layer over a vocabulary of 128,256 (that of
Llama 3), forward and backward in float32. `halos` is `token_logps` of halos/forward/logprobs.py; `full` makes the
logits, takes their log softmax and gathers. Each runs in a process of its own, on two threads unless OMP_NUM_THREADS
says otherwise.

Prints a table and writes it to benchmarks/results/loss_memory.csv: layer, tokens, hidden, vocabulary; extra_gb, the
most memory resident at once (GB) less what is before the forward pass, when hidden states, output layer and
room for their gradients are already there; seconds of the pass; logps_mean and gradient_norm, which must agree; ratio,
of the full logits' extra memory to this row's.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory import peak_gb, resident_gb

RESULTS = Path(__file__).parent / "results/loss_memory.csv"
COLUMNS = ("layer", "tokens", "hidden", "vocabulary", "extra_gb", "seconds", "logps_mean", "gradient_norm", "ratio")
TOKENS, HIDDEN, VOCABULARY = 8 * 1024, 512, 128_256
LAYERS = ("halos", "full")
TOLERANCE = 1e-4


def layer(name: str) -> Callable[..., Any]:
    """(N, H) hidden states, the output layer and (N,) labels -> (N,) log-probabilities."""
    if name == "halos":
        from halos.forward.logprobs import token_logps

        return token_logps

    def full(hidden: Any, head: Any, labels: Any) -> Any:
        return head(hidden).log_softmax(-1).gather(-1, labels[:, None])[:, 0]

    return full


def measure(name: str, tokens: int, hidden: int, vocabulary: int) -> dict[str, Any]:
    """A row but for its ratio; to be called once in a process."""
    import torch

    torch.manual_seed(0)
    states = torch.randn(tokens, hidden).requires_grad_()
    head = torch.nn.Linear(hidden, vocabulary, bias=False)
    labels = torch.randint(vocabulary, (tokens,))
    function = layer(name)
    states.grad, head.weight.grad = torch.zeros_like(states), torch.zeros_like(head.weight)
    function(states[:2], head, labels[:2]).sum().backward()  # what is made once, such as a library's buffers
    head.weight.grad.zero_()
    states.grad.zero_()
    before, begun = resident_gb(), time.perf_counter()
    logps = function(states, head, labels)
    (-logps.mean()).backward()
    seconds = time.perf_counter() - begun
    extra = peak_gb() - before
    norm = float(head.weight.grad.norm() + states.grad.norm())
    found = (name, tokens, hidden, vocabulary, round(extra, 3), round(seconds, 2), float(logps.mean()), norm)
    return dict(zip(COLUMNS, found, strict=False))


def compare(tokens: int, hidden: int, vocabulary: int) -> list[dict[str, Any]]:
    """A row of COLUMNS for each layer, each measured in a fresh process; ends when they do not agree."""
    rows = []
    for name in LAYERS:
        command = [sys.executable, "-m", "benchmarks.loss_memory", "--measure", name, "--sizes",
                   *map(str, (tokens, hidden, vocabulary))]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
        if done.returncode:
            sys.exit(f"error: {name} failed (exit code {done.returncode}; -9: out of memory):\n{done.stderr}")
        rows.append(json.loads(done.stdout))
    for key in ("logps_mean", "gradient_norm"):
        ours, full = (row[key] for row in rows)
        if abs(ours - full) > TOLERANCE * abs(full):
            sys.exit(f"error: {key} is {ours} of halos and {full} of the full logits: they are not the same function")
    for row in rows:
        row["ratio"] = round(rows[-1]["extra_gb"] / max(row["extra_gb"], 1e-3), 1)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loss_memory", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a quarter of the tokens")
    parser.add_argument("--sizes", type=int, nargs=3, metavar=("TOKENS", "HIDDEN", "VOCABULARY"))
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV to write (%(default)s)")
    parser.add_argument("--measure", choices=LAYERS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    sizes = chosen.sizes or (TOKENS // (4 if chosen.quick else 1), HIDDEN, VOCABULARY)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    if chosen.measure:
        print(json.dumps(measure(chosen.measure, *sizes)))
        return
    rows = compare(*sizes)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    with chosen.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    form = "{:>8}{:>8}{:>8}{:>12}{:>10}{:>9}{:>12.5}{:>15.6}{:>7}"
    print("{:>8}{:>8}{:>8}{:>12}{:>10}{:>9}{:>12}{:>15}{:>7}".format(*COLUMNS))
    for row in rows:
        print(form.format(*row.values()))


if __name__ == "__main__":
    main()
