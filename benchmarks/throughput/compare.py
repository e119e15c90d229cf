"""The parent of a comparison: starts the sides, lets them step in turn, checks that their work is equal, sums up."""

from __future__ import annotations

import multiprocessing
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
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
PEERS = ("trl-default", "trl-best", "trl-packing")
SIZES = (1, 2, 8)
"""Microbatches that the search for TRL's fastest tries, as far as they divide the global batch."""
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
    comparisons: Sequence[Comparison], folder: Path, threads: int, pairs: int, budget: int
) -> Iterator[dict[str, Any]]:
    """A row of COLUMNS for each comparison.

    Args:
        folder: for data, models and logs.
        threads: of each side.
        pairs: measured steps of each side, after one to warm up.
        budget: our tokens_per_microbatch.

    Raises:
        HalosError: a side failed, or their work was not equal.
    """
    found: dict[str, Setting] = {}  # by loss: the search takes long
    prepared: dict[str, dict[str, Any]] = {}
    for c in comparisons:
        task = Task(c.loss, c.profile, c.model, c.model.batch, pairs + 1, threads, budget, folder)
        if task.name not in prepared:
            print(f"\n{task.name}: data, reference", flush=True)
            with Side(sides.prepare, task.here / "prepare.log", threads, task) as side:
                prepared[task.name] = side.receive()
        if c.peer == "trl-default":
            setting = Setting(task.batch, 1)
        else:
            if c.loss not in found:
                found[c.loss] = fastest(task)
            setting = found[c.loss].of(task.batch)
        if c.peer == "trl-packing":
            tokens = sum(p + sum(t) for step in prepared[task.name]["examples"] for p, t, _ in step) / task.steps
            packs = max(1, int(tokens / c.profile.max_total))
            setting = Setting(1, packs, {**setting.options, "packing": True})
        yield compare(task, c.peer, setting, prepared[task.name], pairs)


def fastest(task: Task) -> Setting:
    """TRL's best: no gradient checkpointing, the reference computed before, and the fastest microbatch by its second
    step."""
    options = {"gradient_checkpointing": False} | ({} if task.loss == "sft" else {"precompute_ref_log_probs": True})
    sizes = [n for n in SIZES if n <= task.batch and task.batch % n == 0 and (task.loss != "kto" or n > 1)]
    if task.batch not in sizes:
        sizes.append(task.batch)
    settings = [Setting(size, task.batch // size, options) for size in sizes]
    with Side(sides.search, task.here / "search.log", task.threads, task, settings) as side:
        seconds = {size: side.receive()["seconds"] for size in sizes}
    best = min(sizes, key=lambda size: seconds[size])
    print(f"{task.name}: TRL's step by microbatch: {', '.join(f'{n}: {s:.2f} s' for n, s in seconds.items())}",
          flush=True)  # fmt: skip
    return Setting(best, task.batch // best, options)


def compare(task: Task, peer: str, setting: Setting, prepared: dict[str, Any], pairs: int) -> dict[str, Any]:
    """A row of COLUMNS: both sides step in turn on the same examples, and the machine's peak is taken in between."""
    print(f"\n{task.name} against {peer} ({setting})\n"
          f"{'step':>6}{'ours s':>9}{'TRL s':>9}{'ratio':>8}{'our loss':>12}{'TRL loss':>12}", flush=True)  # fmt: skip
    examples = [[Example(*found) for found in step] for step in prepared["examples"]]
    tokens = [sum(e.prompt * len(e.trained) + sum(e.trained) for e in step) for step in examples]
    packing = bool(setting.options.get("packing"))
    a: list[dict[str, Any]] = []
    b: list[dict[str, Any]] = []
    gflops: list[float] = []
    with (
        Side(sides.ours, task.here / "ours.log", task.threads, task) as ours,
        Side(sides.theirs, task.here / f"{peer}.log", task.threads, task, setting, task.steps) as theirs,
    ):
        ready, peer_ready = ours.receive(), theirs.receive()
        for step in range(pairs + 1):  # the first warms up
            for side, rows in ((ours, a), (theirs, b))[:: 1 if step % 2 else -1]:
                rows.append(side.step())
            if not packing:
                check_equal(task.loss, step, a[-1]["loss"], b[-1]["loss"], tokens[step], b[-1]["tokens"])
            ratio = (b[-1]["seconds"] / b[-1]["tokens"]) / (a[-1]["seconds"] / tokens[step])
            print(f"{step or 'warm':>6}{a[-1]['seconds']:>9.2f}{b[-1]['seconds']:>9.2f}{ratio:>8.2f}"
                  f"{a[-1]['loss']:>12.6f}{b[-1]['loss']:>12.6f}", flush=True)  # fmt: skip
            gflops += [matrix_gflops(task.threads) for _ in range(3)]
    speed = [n / found["seconds"] for n, found in zip(tokens, a, strict=True)][1:]
    peer_speed = [found["tokens"] / found["seconds"] for found in b][1:]
    ratios = [x / y for x, y in zip(speed, peer_speed, strict=True)]
    per_example = sum(tokens) / (task.batch * len(tokens))
    shape, peak = Shape.of(task.model.config), median(gflops)

    def share(shared: bool) -> float:
        rates = [useful_flops(shape, step, shared) / found["seconds"] for step, found in zip(examples, a, strict=True)]
        return median(rates[1:]) / peak / 1e9

    return {
        "loss": task.loss,
        "profile": task.profile.name,
        "model": task.model.name,
        "peer": peer,
        "ratio_examples_per_s": round(median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "ratio_peak_memory": round(a[-1]["peak_gb"] / b[-1]["peak_gb"], 3),
        "pairs": pairs,
        "examples_per_s": round(median(speed) / per_example, 3),
        "peer_examples_per_s": round(median(peer_speed) / per_example, 3),
        "tokens_per_s": round(median(speed), 1),
        "peer_tokens_per_s": round(median(peer_speed), 1),
        "peak_memory_gb": round(a[-1]["peak_gb"], 3),
        "peer_peak_memory_gb": round(b[-1]["peak_gb"], 3),
        "baseline_memory_gb": round(ready["baseline_gb"], 3),
        "peer_baseline_memory_gb": round(peer_ready["baseline_gb"], 3),
        "reference_seconds": seconds_or_none(prepared["reference_seconds"]),
        "peer_reference_seconds": seconds_or_none(peer_ready["reference_seconds"]),
        "loss_value": round(a[-1]["loss"], 6),
        "peer_loss_value": round(b[-1]["loss"], 6),
        "batch": task.batch,
        "peer_setting": str(setting),
        "peak_gflops": round(peak, 1),
        "useful_share": float(f"{share(shared=True):.3g}"),
        "useful_share_unshared": float(f"{share(shared=False):.3g}"),
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu(),
        "threads": task.threads,
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl")),
    }


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
