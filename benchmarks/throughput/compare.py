"""The parent of a comparison: starts the sides, lets them step in turn, checks that their work is equal, sums up."""

from __future__ import annotations

import multiprocessing
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.throughput import sides
from benchmarks.throughput.data import Model, Profile
from benchmarks.throughput.flops import Example, Shape, useful_flops
from benchmarks.throughput.sides import Setting, Task
from halos.errors import HalosError

COLUMNS = (
    "loss", "profile", "model", "peer",
    "ratio_examples_per_s", "ratio_min", "ratio_max", "ratio_peak_memory", "pairs",
    "examples_per_s", "peer_examples_per_s", "tokens_per_s", "peer_tokens_per_s",
    "peak_memory_gb", "peer_peak_memory_gb", "baseline_memory_gb", "peer_baseline_memory_gb",
    "reference_seconds", "peer_reference_seconds", "loss_value", "peer_loss_value", "batch", "peer_setting",
    "peak_gflops", "useful_share", "useful_share_unshared", "date", "cpu", "threads", "versions",
)  # fmt: skip
PEERS = ("trl-default", "trl-precomputed", "trl-best", "trl-packing")
FASTEST = {"sft": 1, "dpo": 1, "kto": 2}
"""TRL's fastest microbatch on a CPU, of 1, 2, 4 and 8: 1 pads nothing but a pair, and with 1 its KTO has no KL."""
OURS = "halos"
CHECKED = 3
"""Steps whose losses must agree."""
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Comparison:
    loss: str
    profile: Profile
    model: Model
    peer: str


class Side:
    """A process of one side.

    Args:
        function: of benchmarks.throughput.sides, without its pipe.
        log: file for what it prints.
    """

    def __init__(self, function: Any, log: Path, threads: int, *arguments: Any) -> None:
        self.name, self.log = function.__name__, log
        log.parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=sides.run, args=(function, end, log, threads, *arguments), daemon=True)
        self.process.start()
        end.close()

    def receive(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise HalosError(
                f"{self.name} ended with exit code {self.process.exitcode} (-9: out of memory); see {self.log}"
            ) from None
        if "error" in found:
            raise HalosError(f"{self.name} failed:\n{found['error']}")
        return found

    def step(self) -> dict[str, Any]:
        self.pipe.send(True)
        return self.receive()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self.pipe.send(False)
        self.process.join(10)
        self.process.kill()
        self.process.join()


def run(
    comparisons: Sequence[Comparison], folder: Path, threads: int, pairs: int, budget: int, batch: int | None = None
) -> Iterator[dict[str, Any]]:
    """A row of COLUMNS for each comparison; the peers of one training are measured side by side.

    Args:
        folder: for data, models and logs.
        threads: of each side.
        pairs: measured steps of each side.
        budget: our tokens_per_microbatch.
        batch: examples of a global batch; by default what suits model and profile.

    Raises:
        HalosError: a side failed, or their work was not equal.
    """
    for (loss, profile, model), group in groupby(comparisons, lambda c: (c.loss, c.profile, c.model)):
        task = Task(loss, profile, model, batch or min(model.batch, profile.batch), pairs, threads, budget, folder)
        print(f"\n{task.name}: data, reference", flush=True)
        with Side(sides.prepare, task.here / "prepare.log", threads, task) as side:
            prepared = side.receive()
        examples = [[Example(*found) for found in step] for step in prepared["examples"]]
        settings = {c.peer: setting(task, c.peer, examples) for c in group}
        yield from compare(task, settings, examples, prepared["reference_seconds"])


def setting(task: Task, peer: str, examples: list[list[Example]]) -> Setting:
    """How a peer runs a task."""
    if peer == "trl-default":
        return Setting(task.batch, 1)
    reference = {} if task.loss == "sft" else {"precompute_ref_log_probs": True}
    if peer == "trl-precomputed":
        return Setting(task.batch, 1, reference)
    options = {"gradient_checkpointing": False, **reference}
    if peer == "trl-packing":
        tokens = sum(e.prompt + sum(e.trained) for step in examples for e in step) / task.steps
        return Setting(1, max(1, int(tokens / task.profile.max_total)), {**options, "packing": True})
    size = FASTEST[task.loss]
    return Setting(size, task.batch // size, options)


def compare(
    task: Task, settings: dict[str, Setting], examples: list[list[Example]], reference_seconds: float | None
) -> list[dict[str, Any]]:
    """A row of COLUMNS for each peer: all sides step in turn on the same examples, and the machine's peak is taken in
    between."""
    tokens = [sum(e.prompt * len(e.trained) + sum(e.trained) for e in step) for step in examples]
    gflops: list[float] = []
    with ExitStack() as stack:
        logs = {name: task.here / f"{name}.log" for name in (OURS, *settings)}
        parts = {OURS: stack.enter_context(Side(sides.ours, logs[OURS], task.threads, task))}
        for peer, how in settings.items():
            print(f"{task.name} against {peer} ({how})", flush=True)
            side = Side(sides.theirs, logs[peer], task.threads, task, how, task.steps)
            parts[peer] = stack.enter_context(side)
        ready = {name: side.receive() for name, side in parts.items()}
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in parts}
        print(f"{'side':>12}{'step':>5}{'seconds':>9}{'ratio':>8}{'loss':>12}", flush=True)
        for step in range(task.steps):
            for name in list(parts)[:: 1 if step % 2 else -1]:
                rows[name].append(parts[name].step())
            for name, found in rows.items():
                if name in settings and not settings[name].options.get("packing"):
                    check_equal(task.loss, step, rows[OURS][-1]["loss"], found[-1]["loss"], tokens[step],
                                found[-1]["tokens"])  # fmt: skip
                ratio = "" if name == OURS else f"{speeds(found)[-1] ** -1 * speeds(rows[OURS], tokens)[-1]:.2f}"
                print(f"{name:>12}{step + 1:>5}{found[-1]['seconds']:>9.2f}{ratio:>8}{found[-1]['loss']:>12.6f}",
                      flush=True)  # fmt: skip
            gflops += [matrix_gflops(task.threads) for _ in range(3)]
    speed = speeds(rows[OURS], tokens)
    per_example = sum(tokens) / (task.batch * len(tokens))
    operations, peak = Shape.of(task.model.config).operations, median(gflops)

    def share(shared: bool) -> float:
        rates = [useful_flops(operations, step, shared) / found["seconds"]
                 for step, found in zip(examples, rows[OURS], strict=True)]  # fmt: skip
        return float(f"{median(rates) / peak / 1e9:.3g}")

    def row(peer: str) -> dict[str, Any]:
        peer_speed = speeds(rows[peer])
        ratios = [x / y for x, y in zip(speed, peer_speed, strict=True)]
        ours, theirs = rows[OURS][-1], rows[peer][-1]
        return {
            "loss": task.loss,
            "profile": task.profile.name,
            "model": task.model.name,
            "peer": peer,
            "ratio_examples_per_s": round(median(ratios), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "ratio_peak_memory": round(ours["peak_gb"] / theirs["peak_gb"], 3),
            "pairs": task.steps,
            "examples_per_s": round(median(speed) / per_example, 3),
            "peer_examples_per_s": round(median(peer_speed) / per_example, 3),
            "tokens_per_s": round(median(speed), 1),
            "peer_tokens_per_s": round(median(peer_speed), 1),
            "peak_memory_gb": round(ours["peak_gb"], 3),
            "peer_peak_memory_gb": round(theirs["peak_gb"], 3),
            "baseline_memory_gb": round(ready[OURS]["baseline_gb"], 3),
            "peer_baseline_memory_gb": round(ready[peer]["baseline_gb"], 3),
            "reference_seconds": seconds_or_none(reference_seconds),
            "peer_reference_seconds": seconds_or_none(ready[peer]["reference_seconds"]),
            "loss_value": round(ours["loss"], 6),
            "peer_loss_value": round(theirs["loss"], 6),
            "batch": task.batch,
            "peer_setting": str(settings[peer]),
            "peak_gflops": round(peak, 1),
            "useful_share": share(shared=True),
            "useful_share_unshared": share(shared=False),
            "date": datetime.now(UTC).date().isoformat(),
            "cpu": cpu(),
            "threads": task.threads,
            "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl")),
        }

    return [row(peer) for peer in settings]


def speeds(rows: list[dict[str, Any]], tokens: list[int] | None = None) -> list[float]:
    """Tokens a second of each step, of the side's own tokens unless others are given."""
    return [(found["tokens"] if tokens is None else tokens[k]) / found["seconds"] for k, found in enumerate(rows)]


def check_equal(loss: str, step: int, ours: float, theirs: float, tokens: int, peer_tokens: int) -> None:
    """Refuse to compare sides that do not do the same work.

    Raises:
        HalosError: other tokens, or, in the first steps of sft and dpo, another loss. KTO's are not compared: its KL is
            over other mismatched responses there, a microbatch at a time.
    """
    if tokens != peer_tokens:
        raise HalosError(f"step {step}: the data has {tokens} tokens, and TRL's batch {peer_tokens}")
    if loss != "kto" and step < CHECKED and abs(ours - theirs) > TOLERANCE * abs(theirs):
        raise HalosError(
            f"step {step}: our {loss} loss is {ours:.6f} and TRL's {theirs:.6f}: the two sides do different work, so "
            f"their times say nothing"
        )


def matrix_gflops(threads: int, size: int = 2048) -> float:
    """What the machine does now in a float32 product of square matrices, 1e9 operations a second."""
    import torch

    torch.set_num_threads(threads)
    x = torch.rand(size, size)
    begun = time.perf_counter()
    torch.mm(x, x)
    return 2 * size**3 / (time.perf_counter() - begun) / 1e9


def seconds_or_none(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)


def cpu() -> str:
    """The processor's name, Linux; else what Python knows of it."""
    info = Path("/proc/cpuinfo")
    lines: Iterable[str] = info.read_text().splitlines() if info.exists() else ()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
