"""What runs in the processes of a comparison: the preparation, our training and TRL's.

Each gets one end of a pipe. A training says when it is ready, then does a step for each `True` that comes, and reports
on it; waiting, it reads the pipe and takes no time of the processor.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.memory import peak_gb
from benchmarks.throughput.data import Model, Profile

SEED = 1
BETA = 0.1
ADAMW: dict[str, Any] = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Task:
    """A training that both sides do.

    Attributes:
        batch: examples of a global batch.
        steps: global batches that there is data for.
        tokens_per_microbatch: of ours.
        folder: where everything is written.
        precision: compute type of ours, `bf16` or `fp32`.
        stage: settings of ours beside those that are the same for all tasks.
    """

    loss: str
    profile: Profile
    model: Model
    batch: int
    steps: int
    threads: int
    tokens_per_microbatch: int
    folder: Path
    precision: str = "fp32"
    stage: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.loss}-{self.profile.name}-{self.model.name}"

    @property
    def here(self) -> Path:
        return self.folder / self.name

    @property
    def base(self) -> Path:
        """The model's folder, as the verb `model` writes it."""
        return self.folder / "models" / self.model.name

    @property
    def store(self) -> Path:
        return self.here / "store"

    @property
    def references(self) -> list[Path]:
        """What the loss reads of the reference."""
        parts = {"sft": (), "dpo": ("responses",), "kto": ("responses", "mismatched")}[self.loss]
        return [self.here / f"{part}.safetensors" for part in parts]


@dataclass(frozen=True)
class Setting:
    """How TRL runs: what is not equal for all.

    Attributes:
        microbatch: its per_device_train_batch_size.
        accumulation: its gradient_accumulation_steps.
        options: of its config.
    """

    microbatch: int
    accumulation: int
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        return f"batch {self.microbatch} x {self.accumulation}{options}"


def run(function: Callable[..., None], pipe: Connection, log: Path, threads: int, *arguments: Any) -> None:
    """The process: its output goes to a file, and what it fails of to the parent."""
    try:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        import torch

        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)  # denormal gradients slow matrix products down; so it is for both
        function(pipe, *arguments)
    except BaseException:
        pipe.send({"error": traceback.format_exc()})


# ---- the preparation -----------------------------------------------------------------------------------------


def prepare(pipe: Connection, task: Task) -> None:
    """Make the model, the store and the reference by the verbs, and write examples.jsonl: what TRL is given, and the
    ids that it must come to, in the order of our global batches. Sends {reference_seconds, examples}; the latter are
    (prompt, trained, scored) lengths for each step and example."""
    from benchmarks.throughput import data
    from halos.cli import main
    from halos.data import feedback

    def verb(*arguments: Any) -> None:
        if main([str(argument) for argument in arguments]):
            raise RuntimeError(f"halos {arguments[0]} failed: see {task.here / 'prepare.log'}")

    raw = task.folder / "raw" / task.model.name
    configs = slices(task, raw)
    if not task.base.exists():
        data.make_model(task.model, raw)
        verb("model", "--config", configs["model"], "--output", task.base)
    responses = 1 if task.loss == "sft" else 2
    count = task.batch * task.steps // (2 if task.loss == "kto" else 1)
    train, validation = task.here / "train.parquet", task.here / "validation.parquet"
    made = list(data.records(task.profile, task.loss, count, task.model.config["vocab_size"], SEED))
    feedback.write(made, train)
    feedback.write(data.records(task.profile, task.loss, 2, task.model.config["vocab_size"], SEED + 1), validation)
    verb("tokenize", "--config", configs["tokenize"], "--train", train, "--validation", validation,
         "--model", task.base / "model", "--output", task.store, "--report", task.here / "tokenized.json")  # fmt: skip
    begun = time.perf_counter()
    for file in task.references:
        verb("reference", "--config", configs["base"], "--parent", task.base, "--store", task.store, "--part",
             file.stem, "--output", file, "--tokens-per-microbatch", task.tokens_per_microbatch)  # fmt: skip
    seconds = time.perf_counter() - begun
    texts = [(record.prompt, text) for record in made for text in record.responses]
    assert len(texts) == responses * count
    pipe.send({"reference_seconds": seconds if task.references else None, "examples": write_examples(task, texts)})


def slices(task: Task, raw: Path) -> dict[str, Path]:
    """The config files of the verbs and of the training."""
    from halos.settings import dump
    from halos.study import catalogue as C
    from halos.study.slices import config_slice

    stage = {"loss": task.loss, "lr": task.model.lr, "warmup": 0, "scheduler": "constant", "batch_size": task.batch,
             "optimizer_args": ADAMW, "max_grad_norm": MAX_GRAD_NORM, **task.stage}  # fmt: skip
    if task.loss != "sft":
        stage["beta"] = BETA
    profile = task.profile
    config = C.load(
        {
            "grid": "g",
            "models": {"m": {"path": str(raw), "precision": task.precision}},
            "datasets": {"d": {"sources": [{"name": "toy"}], "max_length": profile.max_total,
                               "max_prompt_length": profile.max_prompt}},
            "stages": {task.loss: stage},
            "grids": {"g": {"datasets": ["d"], "models": ["m"], "methods": [task.loss]}},
        }
    )  # fmt: skip
    folders = {"model": "models/m", "tokenize": "tokens/d/m", "base": "runs/d/m/base/seed0",
               "train": f"runs/d/m/{task.loss}/seed{SEED}"}  # fmt: skip
    files = {name: task.here / f"{name}.yaml" for name in folders}
    for name, folder in folders.items():
        files[name].write_text(dump(config_slice(config, folder)))
    return files


def write_examples(task: Task, texts: list[tuple[list[dict[str, str]], str]]) -> list[list[tuple[Any, ...]]]:
    """examples.jsonl, and (prompt, trained, scored) lengths for each step and example.

    Args:
        texts: (prompt, response) of each sequence, by its row in the store.
    """
    from halos.tokens.store import Store
    from halos.train.batches import GlobalBatches

    store = Store(task.store)
    view, roles = {"sft": ("sft", ["sequence"]), "dpo": ("paired", ["chosen", "rejected"]),
                   "kto": ("unpaired", ["sequence"])}[task.loss]  # fmt: skip
    table = store.view("train", view)
    batches = GlobalBatches(table.num_rows, task.batch, 1, None, SEED)
    found: list[list[tuple[Any, ...]]] = []
    with (task.here / "examples.jsonl").open("w") as file:
        for step in range(len(batches)):
            found.append([])
            for row in table.take(batches[step]).to_pylist():
                rows = [row[role] for role in roles]
                prompt = store.sequence(rows[0])[0].tolist()
                line = {"prompt": texts[rows[0]][0], "responses": [texts[r][1] for r in rows], "prompt_ids": prompt,
                        "response_ids": [store.sequence(r)[1].tolist() for r in rows]}  # fmt: skip
                if task.loss == "kto":
                    line["label"] = row["desirable"]
                file.write(json.dumps(line) + "\n")
                scored = (int(store.lengths[row["mismatched"], 1]),) if task.loss == "kto" else ()
                found[-1].append((len(prompt), tuple(map(len, line["response_ids"])), scored))
    return found


# ---- the two sides -------------------------------------------------------------------------------------------


def ours(pipe: Connection, task: Task) -> None:
    from halos.train.inputs import Inputs
    from halos.train.trainer import Trainer

    baseline = peak_gb()
    inputs = Inputs.open(task.here / "train.yaml", task.base, task.store, task.references)
    trainer = Trainer(inputs, task.here / "run", task.tokens_per_microbatch)
    pipe.send({"baseline_gb": baseline})
    step = 0
    while pipe.recv():
        begun = time.perf_counter()
        found = trainer.step(step)
        seconds = time.perf_counter() - begun
        step += 1
        pipe.send({"seconds": seconds, "loss": found["loss"], "peak_gb": peak_gb()})


def theirs(pipe: Connection, task: Task, setting: Setting, steps: int) -> None:
    """TRL's own loop. The time of a step goes from the word to begin to the log of the step, so that it holds loading
    the step's data, the step and its log."""
    begun = 0.0

    def step_done(loss: float, tokens: int) -> bool:
        nonlocal begun
        seconds = time.perf_counter() - begun
        pipe.send({"seconds": seconds, "loss": loss, "peak_gb": peak_gb(), "tokens": tokens})
        goes_on = bool(pipe.recv())
        begun = time.perf_counter()
        return goes_on

    import_trl(task)
    baseline = peak_gb()
    trainer = trl_trainer(task, setting, steps, step_done)
    pipe.send({"baseline_gb": baseline, "reference_seconds": trainer.reference_seconds})
    if pipe.recv():
        begun = time.perf_counter()
        trainer.train()


def import_trl(task: Task) -> None:
    """Import what the side needs, so that its baseline of memory holds it."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(task.folder / "hf"), "TRL_EXPERIMENTAL_SILENCE": "1"}
    import datasets
    import transformers

    trl_classes(task.loss)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def trl_trainer(
    task: Task, setting: Setting, steps: int, step_done: Callable[[float, int], bool], network: Any = None,
    **arguments: Any,
) -> Any:  # fmt: skip
    """TRL's trainer of a task.

    Args:
        steps: of its training; it is given their examples alone.
        step_done: called with the loss and the tokens of each step once it is logged; whether to go on.
        network: the model; by default that of the task's folder.
        arguments: further ones of the trainer.
    """
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    kind, config = trl_classes(task.loss)
    lines = [json.loads(line) for line in (task.here / "examples.jsonl").open()][: steps * task.batch]

    class Measured(kind):  # type: ignore[misc, valid-type]
        reference_seconds: float | None = None
        tokens = 0

        def _precompute_ref_logps(self, *arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            found = super()._precompute_ref_logps(*arguments, **options)
            self.reference_seconds = time.perf_counter() - begun
            return found

        def training_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
            mask = inputs.get("attention_mask")  # without one there is no padding
            self.tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
            return super().training_step(model, inputs, *arguments, **options)

    class Steps(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            logs = given["logs"]
            if "loss" in logs:  # the summary at the end has none
                tokens, trainer.tokens = trainer.tokens, 0
                control.should_training_stop = not step_done(logs["loss"], tokens)

    folder = task.base / "model"
    trainer = Measured(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype="float32") if network is None else network,
        args=config(
            output_dir=str(task.here / "trl"),
            per_device_train_batch_size=setting.microbatch,
            gradient_accumulation_steps=setting.accumulation,
            max_steps=steps,
            max_length=task.profile.max_total,
            train_sampling_strategy="sequential",
            bf16=task.precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            learning_rate=task.model.lr,
            lr_scheduler_type="constant",
            adam_beta1=ADAMW["betas"][0],
            adam_beta2=ADAMW["betas"][1],
            adam_epsilon=ADAMW["eps"],
            weight_decay=ADAMW["weight_decay"],
            max_grad_norm=MAX_GRAD_NORM,
            seed=SEED,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **({} if task.loss == "sft" else {"beta": BETA}),
            **setting.options,
        ),
        **arguments,
        train_dataset=datasets.Dataset.from_list([row(task.loss, line) for line in lines]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[Steps()],
    )
    if not setting.options.get("packing"):
        check_ids(trainer.train_dataset, lines)
    return trainer


def trl_classes(loss: str) -> tuple[Any, Any]:
    """TRL's trainer and config of a loss."""
    import trl

    return {"sft": (trl.SFTTrainer, trl.SFTConfig), "dpo": (trl.DPOTrainer, trl.DPOConfig),
            "kto": (trl.KTOTrainer, trl.KTOConfig)}[loss]  # fmt: skip


def row(loss: str, line: dict[str, Any]) -> dict[str, Any]:
    """An example as TRL wants it."""
    responses = [[{"role": "assistant", "content": text}] for text in line["responses"]]
    if loss == "dpo":
        return {"prompt": line["prompt"], "chosen": responses[0], "rejected": responses[1]}
    return {"prompt": line["prompt"], "completion": responses[0]} | ({"label": line["label"]} if loss == "kto" else {})


def check_ids(dataset: Any, lines: list[dict[str, Any]]) -> None:
    """Refuse to compare trainings on different tokens.

    Args:
        dataset: TRL's, tokenised.
        lines: of examples.jsonl, with our ids.
    """
    for theirs, line in zip(dataset, lines, strict=True):
        prompt, responses = line["prompt_ids"], line["response_ids"]
        if "input_ids" in theirs:
            equal = theirs["input_ids"] == prompt + responses[0]
            equal &= theirs["labels"] == [-100] * len(prompt) + responses[0]
        else:
            names = ["chosen_ids", "rejected_ids"] if len(responses) == 2 else ["completion_ids"]
            equal = theirs["prompt_ids"] == prompt and [theirs[name] for name in names] == responses
        if not equal:
            raise ValueError("TRL's token ids are not ours: the two sides would do different work")
