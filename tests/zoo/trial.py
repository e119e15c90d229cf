"""A model type put through the product's own verbs, each checked against plain transformers.

Plain transformers is a folder's model as `from_pretrained` loads it, in float32, called on one sequence at a time: no
padding, no packing, no adapters, no cache of log-probabilities.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from halos.data.paths import SPLITS
from halos.data.prepare import prepare
from halos.errors import HalosError
from halos.models.base import make
from halos.reference.cache import Reference, expected_hashes
from halos.sample.run import sample
from halos.settings import dump
from halos.study import catalogue as C
from halos.tokens.store import Store
from halos.tokens.tokenize import tokenize
from halos.train.inputs import Inputs
from tests.conftest import CATALOGUE, World
from tests.train.runs import log
from tests.zoo.architectures import SHELLS, tiny

COLUMNS = ("base", "rows", "reference", "sft", "dpo", "kto", "lora", "reward model", "ppo", "sampling")
"""What is tried, in order. `rows` is how sequences are laid out: packed, padded, or each alone."""
STAGES = {"sft": "sft", "dpo": "dpo", "kto": "kto", "lora": "lora", "reward model": "bradley_terry", "ppo": "ppo"}
TOLERANCE = 1e-3
"""Largest difference from plain transformers: of log-probabilities in their standard deviations over tokens, of
log-ratios and scores in the largest of them. Weights are so large that a wrong context shows far above it."""
CHECKED = 12
"""Sequences of the reference that are compared."""


def catalogue(architecture: dict[str, Any] | None, path: Path | None = None) -> C.Config:
    """A study of few and short sequences, some of them shorter and some longer than the types' windows."""
    content: dict[str, Any] = copy.deepcopy(CATALOGUE)
    entry = content["models"]["m"]
    entry["tokenizer"]["vocab_size"] = 320
    if path is None:
        entry["architecture"] = architecture
    else:
        content["models"]["m"] = {"path": str(path), "template": "turns", "precision": "fp32"}
    source = {"name": "toy", "options": {"prompts": 24, "test_prompts": 8}}
    content["datasets"]["d"] |= {"sources": [source], "eval_examples": 6}
    for stage in content["stages"].values():
        stage |= {"lr": 3e-3, "batch_size": 6, "examples": 18}
    return C.load(yaml.safe_load(yaml.safe_dump(content)))


def shared(results: Path) -> World:
    """The data of all types, and a Llama for its tokenizer, which is that of all types."""
    torch.set_num_threads(1)
    world = World(results, catalogue(tiny("llama", 320)))
    data = results / "data/d"
    prepare(world.slice("data/d"), *(data / f"{split}.parquet" for split in SPLITS), data / "report.json")
    make(world.slice("models/m"), world.base, [data / "train.parquet"])
    return world


class Differs(Exception):
    """A result that is not that of plain transformers."""


@dataclass
class Trial:
    """A model type, and what comes of it.

    Args:
        name: a type or variant of `tests.zoo.architectures`.
        shared: the world of `shared`.
        results: an empty folder.

    Attributes:
        outcomes: column -> `yes` with what is to be added, or `refused:`, `differs:` or `fails:` with the reason.
    """

    name: str
    shared: World
    results: Path
    outcomes: dict[str, str] = field(default_factory=dict)

    def run(self) -> dict[str, str]:
        """Try everything, and return the outcomes."""
        self._try("base", self._base)
        if self.outcomes["base"] != "yes":
            return self.outcomes
        self._try("reference", self._reference)
        for column, stage in STAGES.items():
            self._try(column, partial(self._train, stage))
        self._try("sampling", self._sample)
        return {column: self.outcomes[column] for column in COLUMNS if column in self.outcomes}

    def _try(self, column: str, what: Callable[[], str]) -> None:
        try:
            with _quiet() as said:
                outcome = what()
        except HalosError as error:
            outcome = f"refused: {error}"
        except Differs as error:
            outcome = f"differs: {error}"
        except Exception as error:  # whatever a model's own code raises is what is looked for
            outcome = f"fails: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.outcomes[column] = outcome.replace(f"{self.results}/", "")
        if column == "reference":
            done = not outcome.startswith(("refused", "fails"))
            self.outcomes["rows"] = _rows(said.getvalue()) if done else self.outcomes[column]

    # ---- the verbs -----------------------------------------------------------------------------------------

    def _base(self) -> str:
        """`model` and `tokenize`."""
        rows = len(AutoTokenizer.from_pretrained(self.shared.base / "model"))
        architecture = tiny(self.name, rows)
        path = self._folder(architecture) if self.name in SHELLS else None
        self.world = World(self.results, catalogue(architecture, path))
        data = self.shared.results / "data/d"
        splits = data / "train.parquet", data / "validation.parquet"
        make(self.world.slice("models/m"), self.world.base, [] if path else [splits[0]])
        config, report = self.world.slice("tokens/d/m"), self.results / "tokens/d/m/report.json"
        tokenize(config, *splits, self.world.base / "model", self.world.store, report)
        return "yes"

    def _folder(self, architecture: dict[str, Any]) -> Path:
        """A local folder of a model that no `architecture:` makes, as one from the hub would be."""
        fields = dict(architecture)
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(self.results / "shell")
        AutoTokenizer.from_pretrained(self.shared.base / "model").save_pretrained(self.results / "shell")
        return self.results / "shell"

    def _reference(self) -> str:
        """`reference`: cached log-probabilities are those of each sequence alone."""
        files, store = self.world.reference(), Store(self.world.store)
        cached = Reference(files, expected_hashes(self.world.base, store))
        rows = np.unique(np.linspace(0, len(store) - 1, CHECKED).astype(int))
        model = plain(self.world.base / "model")
        ours = np.concatenate([cached[row] for row in rows])
        expected = torch.cat([token_logps(model, *store.sequence(row)) for row in rows]).numpy()
        error = float(np.abs(ours - expected).max()) / float(expected.std())
        if not error < TOLERANCE:
            raise Differs(f"log-probabilities by {error:.2g} of their deviation over tokens")
        return "yes"

    def _train(self, stage: str) -> str:
        """`train`, and what was published: it is as good as the last evaluation said, and was moved by the training."""
        run = self.world.train(self.results / "trained" / stage, stage)
        lines = log(run)
        values = [value for line in lines for value in line.values() if isinstance(value, float)]
        if not all(map(math.isfinite, values)):
            raise Differs("a value of the log is not finite")
        first = next(line for line in lines if line["split"] == "train")
        if stage in ("dpo", "lora") and abs(first["loss"] - math.log(2)) > 1e-4:
            raise Differs(f"the loss of the first step is {first['loss']:.4f} instead of log 2")
        if stage in ("kto", "ppo") and abs(first["kl"]) > 1e-3:
            raise Differs(f"policy and reference differ at the first step by {first['kl']:.2g} nats")
        before, after = (_weights(folder / "model") for folder in (self.world.base, run))
        lost = sorted(before.keys() - after.keys())
        if lost and stage != "bradley_terry":  # whose score layer takes the output layer's place
            raise Differs(f"the published model lacks {lost[0]} and {len(lost) - 1} other weights")
        moved = {name for name, value in before.items() if name in after and not torch.equal(value, after[name])}
        if not moved:
            raise Differs("no weight has moved")
        self._reload(run, stage, lines[-1])
        return f"yes, {self._share():.0%} of matrices" if stage == "lora" else "yes"

    def _share(self) -> float:
        """The share of the matrices that `dpo` has moved which it moves with adapters, embeddings apart."""
        model = plain(self.world.base / "model")
        embeddings = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
        layers = [] if (output := model.get_output_embeddings()) is None else [output.weight]
        before, full, adapted = (
            _weights(folder / "model")
            for folder in (self.world.base, *(self.results / "trained" / stage for stage in ("dpo", "lora")))
        )
        matrices = {
            name: value.numel()
            for name, value in before.items()
            if value.ndim > 1 and not any(torch.equal(value, weight) for weight in embeddings + layers)
        }
        moved = {name: size for name, size in matrices.items() if not torch.equal(full[name], before[name])}
        return sum(size for name, size in moved.items() if not torch.equal(adapted[name], before[name])) / sum(
            moved.values()
        )

    @torch.no_grad()
    def _reload(self, run: Path, stage: str, last: dict[str, Any]) -> None:
        """Compare the last evaluation with the published model under plain transformers."""
        store = Store(self.world.store)
        inputs = Inputs.open(run_config(self.world, stage), self.world.base, self.world.store,
                             self.world.parts(self.world.config.stages[stage]))  # fmt: skip
        rows = inputs.examples("validation", {}, packed=False).rows
        if stage == "bradley_terry":
            model = AutoModelForSequenceClassification.from_pretrained(run / "model", dtype=torch.float32).eval()
            chosen, rejected = (_scores(model, store, rows[role]) for role in ("chosen", "rejected"))
            loss = torch.nn.functional.softplus(rejected - chosen)
            return _equal("loss", last["loss"], loss.mean(), float(torch.cat([chosen, rejected]).abs().max()))
        model = plain(run / "model")
        after = {role: _sums(model, store, some) for role, some in rows.items() if role in inputs.loss.view.roles}
        if not inputs.loss.needs_reference:
            tokens = store.lengths[rows["response"], 1].sum()
            return _equal("loss", last["loss"], -after["response"].sum() / tokens, 1.0)
        base = plain(self.world.base / "model")
        ratios = {role: value - _sums(base, store, rows[role]) for role, value in after.items()}
        largest = float(torch.cat(list(ratios.values())).abs().max())
        _equal("kl", last["kl"], torch.cat(list(ratios.values())).mean(), largest)
        if "chosen" in ratios:
            margins = inputs.loss.beta * (ratios["chosen"] - ratios["rejected"])
            loss = torch.nn.functional.softplus(-margins)
            _equal("loss", last["loss"], loss.mean(), largest)
        return None

    def _sample(self) -> str:
        """`sample`: the greedy responses to prompts side by side are those to each alone."""
        output = self.results / "samples.jsonl"
        prompts = {"limit": 6, "samples": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": 8}
        (self.results / "prompts.yaml").write_text(dump(prompts))
        feedback = self.shared.results / "data/d/test.parquet"
        folder = self.world.base / "model"
        config = self.world.slice("runs/d/m/base/seed0")
        sample(config, [self.results / "prompts.yaml"], [feedback], folder, self.world.store, [output], 6)
        model, tokenizer = plain(folder), AutoTokenizer.from_pretrained(folder)
        model.generation_config.forced_eos_token_id = None  # BART's kind ends every text at the limit, cut or not
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        other = 0
        for line in lines:
            text = tokenizer.apply_chat_template(line["prompt"], tokenize=False, add_generation_prompt=True)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8
                )
            other += out[0, ids.shape[1] :].tolist() != line["response_ids"]
        if other:
            raise Differs(f"{other} of {len(lines)} greedy responses")
        return "yes"


# ---- plain transformers ----------------------------------------------------------------------------------------


def plain(folder: Path) -> Any:
    """A folder's model as transformers loads it, in float32."""
    kinds = AutoModelForCausalLM, AutoModelForImageTextToText
    kind = kinds[type(AutoConfig.from_pretrained(folder)) not in AutoModelForCausalLM._model_mapping]
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def token_logps(model: Any, prompt: np.ndarray, response: np.ndarray) -> Tensor:
    """(T,) log-probabilities of a response's tokens, run alone."""
    ids = torch.tensor(np.concatenate([prompt, response]), dtype=torch.long)
    logps = model(input_ids=ids[None], use_cache=False).logits[0].float().log_softmax(-1)[len(prompt) - 1 : -1]
    return logps.gather(1, ids[len(prompt) :, None])[:, 0]


def _sums(model: Any, store: Store, rows: np.ndarray) -> Tensor:
    """(N,) sum over its tokens of the log-probabilities of each response, run alone."""
    return torch.stack([token_logps(model, *store.sequence(row)).sum() for row in rows])


def _scores(model: Any, store: Store, rows: np.ndarray) -> Tensor:
    """(N,) scores of sequences by a classifier, each run alone."""
    ids = [torch.tensor(np.concatenate(store.sequence(row)), dtype=torch.long)[None] for row in rows]
    return torch.stack([model(input_ids=row).logits[0, 0] for row in ids])


def _weights(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def run_config(world: World, stage: str) -> Path:
    return world.results / f"runs/d/m/{stage}/seed1/config.yaml"


def _equal(name: str, ours: float, expected: Tensor, scale: float) -> None:
    if not abs(ours - float(expected)) < TOLERANCE * max(scale, 1e-2):
        raise Differs(f"the last evaluation's {name} is {ours:.5f}, and that of the published model {expected:.5f}")


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """What is printed meanwhile."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield said


def _rows(said: str) -> str:
    found = re.search(r"packing is off: (.*)", said)
    return "packed" if found is None else f"padded: {found[1]}"
