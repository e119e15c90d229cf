"""Speed, utilisation and memory of our training on a GPU, beside TRL's where that is installed.

    python -m benchmarks.gpu                            # all cases, at most 8 minutes on one GPU
    python -m benchmarks.gpu --cases 1b-dpo 1b-dpo-flex --minutes 3
    python -m benchmarks.gpu --device cpu --cases tiny-dpo tiny-kto    # whether it runs

Nothing is downloaded. Models have the shapes of Llama 3.2 1B, of which all weights are trained, and of Llama 3.1 8B,
with LoRA adapters of rank 64 on every linear layer and gradient checkpointing. Their random weights are made on the
GPU, float32, and computed with in bfloat16; data are those of benchmarks.throughput with the lengths of HH. Both sides
train with the same examples, learning rate, clipping and AdamW; the loss of their first step is in the table, so that
unequal work shows. TRL gets its reference computed before training, no more checkpointing than ours, and batches of 8
pairs (KTO: 16 responses) that add up to the same global batch. A side runs in a process of its own, one after the
other. Cases go by importance; one for which no time is left, or that fails, is a line that says so.

Writes benchmarks/results/gpu.csv, a line as soon as it is known. Columns: case, side, setting; tokens_per_s (a pair's
prompt counted twice), examples_per_s and seconds, of the median step after the first ones; mfu, operations that the
step cannot do without (halos/forward/operations.py; a shared prompt counts once, on both sides) over time and the
GPU's peak in bfloat16, none for a GPU whose peak is not known; peak_memory_gb, allocated by torch (on a CPU: resident);
steps, measured; loss_first, loss_last; reference_seconds; batch, examples of a global batch; problem; device, date,
versions.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.memory import peak_gb
from benchmarks.throughput import sides
from benchmarks.throughput.compare import Side
from benchmarks.throughput.data import PROFILES, Model, Profile
from benchmarks.throughput.flops import Example, useful_flops
from benchmarks.throughput.sides import Setting, Task
from halos.distributed.peaks import known
from halos.errors import HalosError
from halos.forward.operations import Operations

RESULTS = Path(__file__).parent / "results/gpu.csv"
COLUMNS = (
    "case", "side", "setting", "tokens_per_s", "examples_per_s", "seconds", "mfu", "peak_memory_gb", "steps",
    "loss_first", "loss_last", "reference_seconds", "batch", "problem", "device", "date", "versions",
)  # fmt: skip
WARM = 2
"""First steps that do not count: kernels are chosen or compiled in them."""
STEPS = 8
LEAST = 20.0
"""Seconds without which a side is not started."""
LIMIT = 150.0
"""Seconds that one side may take, from its start."""
LORA: dict[str, Any] = {"r": 64, "alpha": 128, "dropout": 0.0, "target_modules": "all-linear"}
OURS, TRL = "halos", "trl"
LLAMA = {"model_type": "llama", "vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 8192}
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {**LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "tie_word_embeddings": True},
    "8b": {**LLAMA, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "tie_word_embeddings": False},
    "tiny": {**LLAMA, "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True},
}  # fmt: skip
"""Fields of Llama 3.2 1B's and Llama 3.1 8B's configs, and those of a model to try this out."""
SHORT = Profile("short", 20, 1.0, 0.4, 0.4, 0.3, batch=2, max_prompt=24, max_total=40)


@dataclass(frozen=True)
class Case:
    """A training that is measured.

    Attributes:
        shape: of the model, in SHAPES.
        batch: examples of a global batch.
        tokens_per_microbatch: of ours.
        microbatch: examples of TRL's batches; all of them are one global batch.
        lora: whether adapters are trained, and activations checkpointed.
        attention, liger, compile: how ours computes.
        peers: the sides.
    """

    shape: str
    loss: str
    batch: int = 64
    tokens_per_microbatch: int = 16_384
    microbatch: int = 8
    lora: bool = False
    attention: str = "sdpa"
    liger: bool = False
    compile: bool = False
    peers: tuple[str, ...] = (OURS, TRL)

    def setting(self, side: str) -> str:
        """What is not the same for all, in words."""
        common = "LoRA, checkpointing" if self.lora else "all weights"
        if side == TRL:
            return f"{common}, batch {self.microbatch} x {self.batch // self.microbatch}"
        extra = [name for name in ("liger", "compile") if getattr(self, name)]
        return ", ".join([common, self.attention, *extra, f"{self.tokens_per_microbatch} tokens"])


_FULL = Case("1b", "dpo")
_LORA = Case("8b", "dpo", batch=32, microbatch=4, lora=True)
CASES: dict[str, Case] = {
    "1b-dpo": _FULL,
    "8b-dpo": _LORA,
    "1b-kto": replace(_FULL, loss="kto", batch=128, microbatch=16),
    "8b-kto": replace(_LORA, loss="kto", batch=64, microbatch=8),
    "1b-dpo-flash": replace(_FULL, attention="flash_attention_2", peers=(OURS,)),
    "1b-dpo-flex": replace(_FULL, attention="flex_attention", peers=(OURS,)),
    "1b-dpo-compile": replace(_FULL, compile=True, peers=(OURS,)),
    "1b-dpo-liger": replace(_FULL, liger=True, peers=(OURS,)),
}
"""By importance."""
TINY: dict[str, Case] = {
    f"tiny-{loss}{'-lora' * lora}": Case("tiny", loss, batch=4, tokens_per_microbatch=512, microbatch=2, lora=lora)
    for loss in ("dpo", "kto")
    for lora in (False, True)
}


@dataclass(frozen=True)
class Unread(Task):
    """A task whose reference no file holds: each side computes it with the model that it trains."""

    case: Case = field(default=_FULL)

    @property
    def references(self) -> list[Path]:
        return []


def task_of(case: Case, folder: Path, steps: int, threads: int) -> Unread:
    """The data of a case: sequences are those of its loss and vocabulary, whatever model they are for."""
    vocabulary = SHAPES[case.shape]["vocab_size"]
    tokenizer = {**SHAPES["tiny"], "vocab_size": vocabulary, "hidden_size": 8, "num_hidden_layers": 1}
    profile = SHORT if case.shape == "tiny" else PROFILES["hh"]
    model = Model(f"{vocabulary}-{'lora' if case.lora else 'all'}", tokenizer, case.batch, lr=1e-5)
    stage = {"lora": LORA} if case.lora else {}
    return Unread(
        case.loss, profile, model, case.batch, steps, threads, case.tokens_per_microbatch, folder, "bf16", stage, case
    )


# ---- the two sides, each in a process of its own -----------------------------------------------------------------


def random_model(case: Case) -> Any:
    """The model of a case with random weights, float32, made on the device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(SHAPES[case.shape])
    config = AutoConfig.for_model(fields.pop("model_type"), bos_token_id=0, eos_token_id=1, pad_token_id=2, **fields)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=case.attention)


def device_peak_gb() -> float:
    """The most memory at once, GB of 1e9 bytes: allocated on the GPU, or resident in a process without one."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else peak_gb()


def about(model: Any) -> dict[str, Any]:
    """What the parent has to know of a side's model and device."""
    import torch

    operations = Operations.of(model)
    assert operations is not None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"operations": asdict(operations), "device": device}


def ours(pipe: Connection, task: Unread) -> None:
    """Our trainer, on a model that no folder holds. Packed rows are not tried out first: this class has them."""
    import torch

    from halos.forward.attention import counterpart
    from halos.forward.budget import pack
    from halos.forward.microbatch import collate
    from halos.forward.networks import ResponseLogps
    from halos.models.attention import check_here
    from halos.models.fused import check_liger
    from halos.models.lora import coverage, with_lora
    from halos.tokens.store import Store
    from halos.train.inputs import Inputs
    from halos.train.policy import Policy
    from halos.train.slices import RunSlice
    from halos.train.trainer import Trainer

    case = task.case
    reference: dict[int, Any] = {}
    spent: dict[str, float] = {}

    class Random(Trainer):
        def _begin(self, gradient_checkpointing: bool) -> Policy:
            model = random_model(case)
            parameters = sum(p.numel() for p in model.parameters())
            if case.liger:
                check_liger(model.config)
            if gradient_checkpointing:
                checkpoint(model)
            adapted = with_lora(model, LORA) if case.lora else model
            network = ResponseLogps(adapted.to(self.accelerator.device))
            model.set_attn_implementation(counterpart(case.attention))
            begun = time.perf_counter()
            self._score(network)
            spent["reference_seconds"] = time.perf_counter() - begun
            return Policy(network=network, value_head=None, tokenizer=None, control={}, parameters=parameters,
                          coverage=coverage(adapted), unpacked_because=None, unchecked_because=None)  # fmt: skip

        @torch.no_grad()
        def _score(self, network: ResponseLogps) -> None:
            """The log-probabilities of all sequences under the model before its training."""
            store = self.inputs.store
            network.eval()
            for members in pack(store.prompt_of(np.arange(len(store))), store.lengths, self.budget):
                with self.accelerator.autocast():
                    logps = network(collate(store, members, packed=True).to(self.accelerator.device))["logps"]
                for row, values in zip(members.tolist(), logps.float().cpu().numpy(), strict=True):
                    reference[row] = values[: store.lengths[row, 1]]

    check_here(case.attention)
    settings = RunSlice.read(task.here / "train.yaml").model_copy(
        update={"attention": case.attention, "liger": case.liger, "compile": case.compile}
    )
    stage = settings.stage
    assert stage is not None
    known_reference: Any = reference
    inputs = Inputs(
        settings, stage, stage.make_loss(), task.base / "model", Store(task.store), known_reference, scores=None,
        value_head=None, resumed=None, before=None, hashes={},
    )  # fmt: skip
    trainer = Random(inputs, task.here / "run", task.tokens_per_microbatch, gradient_checkpointing=case.lora)
    pipe.send({**about(trainer.accelerator.unwrap_model(trainer.policy).model), **spent})
    step = 0
    while pipe.recv():
        begun = time.perf_counter()
        found = trainer.step(step)
        synchronise()
        seconds = time.perf_counter() - begun
        step += 1
        pipe.send({"seconds": seconds, "loss": found["loss"], "peak_gb": device_peak_gb()})


def theirs(pipe: Connection, task: Unread) -> None:
    """TRL's trainer; the time of a step is as in benchmarks.throughput."""
    case, begun = task.case, 0.0

    def step_done(loss: float, tokens: int) -> bool:
        nonlocal begun
        synchronise()
        pipe.send({"seconds": time.perf_counter() - begun, "loss": loss, "peak_gb": device_peak_gb()})
        goes_on = bool(pipe.recv())
        begun = time.perf_counter()
        return goes_on

    sides.import_trl(task)
    setting = Setting(case.microbatch, case.batch // case.microbatch,
                      {"gradient_checkpointing": case.lora, "precompute_ref_log_probs": True})  # fmt: skip
    arguments: dict[str, Any] = {}
    if case.lora:
        from peft import LoraConfig

        arguments["peft_config"] = LoraConfig(
            r=LORA["r"], lora_alpha=LORA["alpha"], lora_dropout=LORA["dropout"], target_modules=LORA["target_modules"],
            task_type="CAUSAL_LM",
        )  # fmt: skip
    trainer = sides.trl_trainer(task, setting, task.steps, step_done, random_model(case), **arguments)
    pipe.send({**about(trainer.model), "reference_seconds": trainer.reference_seconds})
    if pipe.recv():
        begun = time.perf_counter()
        trainer.train()


def checkpoint(model: Any) -> None:
    """Switch on gradient checkpointing, by the name that this version of transformers has for it."""
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    next(getattr(model, name) for name in names if hasattr(model, name))({"use_reentrant": False})


def synchronise() -> None:
    """Wait until the GPU, if there is one, has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---- the parent ------------------------------------------------------------------------------------------------


def receive(side: Side, until: float) -> dict[str, Any]:
    """A side's next message.

    Raises:
        HalosError: there is none in time.
    """
    if not side.pipe.poll(max(0.0, until - time.monotonic())):
        raise HalosError("it took too long")
    return side.receive()


def measure(task: Unread, side: str, examples: list[list[Example]], until: float) -> dict[str, Any]:
    """The figures of one side of a case, by the names of COLUMNS; of the steps that there was time for.

    Raises:
        HalosError: it failed, or was not ready in time.
    """
    function = ours if side == OURS else theirs
    tokens = [sum(e.prompt * len(e.trained) + sum(e.trained) for e in step) for step in examples]
    done: list[dict[str, Any]] = []
    with Side(function, task.here / f"{task.case.shape}-{side}.log", task.threads, task) as process:
        ready = receive(process, until)
        for _ in range(task.steps):
            process.pipe.send(True)
            try:
                done.append(receive(process, until))
            except HalosError:
                if len(done) <= WARM:
                    raise
                process.process.kill()
                break
    operations = Operations(**ready["operations"])
    device = known(ready["device"])
    warm = range(WARM, len(done))
    seconds = [done[k]["seconds"] for k in warm]
    peak = None if device is None else device.peak(task.precision)
    useful = [useful_flops(operations, examples[k], shared=True) for k in warm]
    return {
        "tokens_per_s": round(median(tokens[k] / s for k, s in zip(warm, seconds, strict=True)), 1),
        "examples_per_s": round(task.batch / median(seconds), 2),
        "seconds": round(median(seconds), 4),
        "mfu": peak and round(median(u / s / peak for u, s in zip(useful, seconds, strict=True)), 4),
        "peak_memory_gb": round(done[-1]["peak_gb"], 2),
        "steps": len(seconds),
        "loss_first": round(done[0]["loss"], 5),
        "loss_last": round(done[-1]["loss"], 5),
        "reference_seconds": ready["reference_seconds"] and round(ready["reference_seconds"], 2),
        "device": ready["device"],
    }


def run(cases: dict[str, Case], folder: Path, until: float, threads: int) -> Iterator[dict[str, Any]]:
    """A row of COLUMNS for each case and side, until the time is over."""
    prepared: dict[Path, list[list[Example]]] = {}
    for name, case in cases.items():
        task = task_of(case, folder, WARM + STEPS, threads)
        for side in case.peers:
            if side == TRL and find_spec("trl") is None:
                continue
            row = {
                "case": name, "side": side, "setting": case.setting(side), "batch": case.batch,
                "date": datetime.now(UTC).date().isoformat(), "versions": versions(),
            }  # fmt: skip
            left = until - time.monotonic()
            if left < LEAST:
                yield {**row, "problem": "no time was left"}
                continue
            limit = time.monotonic() + min(left - 5, LIMIT)
            try:
                if task.here not in prepared:
                    with Side(sides.prepare, task.here / "prepare.log", threads, task) as process:
                        found = receive(process, limit)["examples"]
                    prepared[task.here] = [[Example(*lengths) for lengths in step] for step in found]
                yield {**row, **measure(task, side, prepared[task.here], limit)}
            except HalosError as error:
                yield {**row, "problem": str(error).strip().splitlines()[-1]}


def versions() -> str:
    """Installed versions of what decides speed."""
    found = []
    for name in ("torch", "transformers", "trl", "flash-attn", "liger-kernel"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=(*CASES, *TINY), default=list(CASES), metavar="CASE",
                        help=f"of {', '.join((*CASES, *TINY))}")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no more is done (%(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV to write (%(default)s)")
    chosen = parser.parse_args(arguments)
    until = time.monotonic() + 60 * chosen.minutes
    if chosen.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        import torch

        if not torch.cuda.is_available():
            sys.exit("error: there is no GPU here; `--device cpu --cases tiny-dpo` tries whether this runs")
    cases = {name: {**CASES, **TINY}[name] for name in chosen.cases}
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chosen.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        print(f"{'case':<16}{'side':<7}{'tokens/s':>10}{'MFU':>7}{'peak GB':>9}{'loss':>9}  setting", flush=True)
        for row in run(cases, Path(folder), until, chosen.threads):
            writer.writerow(row)
            file.flush()
            print(line(row), flush=True)


def line(row: dict[str, Any]) -> str:
    """A row for the screen."""
    begin = f"{row['case']:<16}{row['side']:<7}"
    if "problem" in row:
        return f"{begin}{row['problem']}"
    mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%}"
    return (f"{begin}{row['tokens_per_s']:>10,.0f}{mfu:>7}{row['peak_memory_gb']:>9.2f}{row['loss_first']:>9.4f}  "
            f"{row['setting']}")  # fmt: skip


if __name__ == "__main__":
    main()
