"""Sampling: responses of one model to prompt sets, with its own saved chat template."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from halos.config import read_slice
from halos.data.feedback import select_prompts
from halos.data.template import Template
from halos.errors import HalosError
from halos.provenance import hash_content


def sample(
    config: Path,
    prompts: list[Path],
    feedback: list[Path],
    model: Path,
    store: Path,
    output: list[Path],
    batch: int,
) -> None:
    """The verb: sample responses with transformers to one prompt set or several, one after the other.

    Prompts of similar length are answered together, each batch from its own seed, so a stopped run goes on at a batch
    and ends with the same text. Each output is whole or absent: it grows under a hidden name.

    Args:
        config: slice of the cell (`seed`, `attention`, `precision`).
        prompts: slice of each prompt set.
        feedback: the parquet file whose prompts are answered, for each set.
        model: the model's folder.
        store: the cell's sequence store, whose prompt length limit holds here too.
        output: for each set, JSON lines: prompt_id, prompt, response, sample, finish_reason (`stop` or `length`), token
            counts and the sampling parameters.
        batch: responses generated side by side.

    Raises:
        HalosError: the sets, files and outputs differ in number, or a set is empty.
    """
    if not len(prompts) == len(feedback) == len(output):
        raise HalosError("give as many --feedback and --output as --prompts")
    limit = json.loads((store / "meta.json").read_text())["max_prompt_length"]
    sampler = _Sampler(model, read_slice(config), batch)
    for how, file, path in zip(prompts, feedback, output, strict=True):
        sampler.answer(read_slice(how), file, limit, path)


class _Sampler:
    """A model that answers prompts; its weights are read when the first batch is due."""

    def __init__(self, model: Path, settings: dict[str, Any], batch: int) -> None:
        from transformers import AutoTokenizer

        self.folder, self.settings, self.batch = model, settings, batch
        self.seed: int = settings["seed"]
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
        self.template = Template(self.tokenizer)

    @cached_property
    def network(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" and self.settings["precision"] == "bf16" else torch.float32
        network: Any = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=dtype, attn_implementation=self.settings["attention"], use_safetensors=True
        )
        return network.to(device).eval()

    def answer(self, how: dict[str, Any], feedback: Path, limit: int, output: Path) -> None:
        """Write the responses to a prompt set."""
        records = select_prompts(feedback, how["limit"], how["skip"], how.get("shuffle"))
        ids = [p.ids for p in self.template.prompts([r.prompt for r in records], limit)]
        if too_long := sum(i is None for i in ids):
            print(f"{too_long} prompts are left out: their last user turn alone is longer than max_prompt_length "
                  f"({limit})")  # fmt: skip
        jobs = [(i, k) for i in range(len(records)) if ids[i] is not None for k in range(how["samples"])]
        jobs.sort(key=lambda job: -len(ids[job[0]] or ()))
        batches = [jobs[start : start + self.batch] for start in range(0, len(jobs), self.batch)]
        parameters = {k: how[k] for k in ("temperature", "top_p", "max_new_tokens")}
        # what earlier lines must agree with; the weights by their files' dates, as hashing large ones takes minutes
        weights = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(self.folder.glob("*.safetensors"))]
        inputs = hash_content([[r.prompt_id for r in records], ids, how["samples"], weights])
        identity = {"seed": self.seed, "inputs": inputs, "batch": self.batch, **parameters}

        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_name(f".{output.name}.partial")
        lines = _resumed(partial, identity, batches)
        skip = len(lines)
        with partial.open("a") as file:
            if not lines:
                file.write(json.dumps(identity) + "\n")
            for number, part in enumerate(tqdm(batches, desc="sample", unit="batch", mininterval=1)):
                if skip >= len(part):
                    skip -= len(part)
                    continue
                generated = self._generate([ids[i] or [] for i, _ in part], how, self.seed * 1_000_003 + number)
                for (i, k), (text, tokens, reason) in zip(part, generated, strict=True):
                    line = {
                        "prompt_id": records[i].prompt_id,
                        "prompt": records[i].prompt,
                        "response": text,
                        "sample": k,
                        "finish_reason": reason,
                        "prompt_tokens": len(ids[i] or ()),
                        "response_tokens": tokens,
                        "seed": self.seed,
                        **parameters,
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                file.flush()
        done = [json.loads(line) for line in partial.read_text().split("\n")[1:-1]]
        order = {record.prompt_id: i for i, record in enumerate(records)}
        done.sort(key=lambda line: (order[line["prompt_id"]], line["sample"]))
        partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in done))
        partial.replace(output)

    def _generate(self, prompts: list[list[int]], how: dict[str, Any], seed: int) -> list[tuple[str, int, str]]:
        """(text, tokens with the end of turn, finish reason) of a response to each prompt."""
        import torch
        from transformers import GenerationConfig

        greedy = how["temperature"] == 0
        drawn = {"do_sample": False} if greedy else {"do_sample": True, **{k: how[k] for k in ("temperature", "top_p")}}
        generation = GenerationConfig.from_pretrained(self.folder, max_new_tokens=how["max_new_tokens"], **drawn)
        generation.top_k = None if greedy else 0
        ends = set(generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id])
        inputs = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self.network.device)
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = self.network.generate(**inputs, generation_config=generation)
        found = []
        for tokens in out[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((t for t, token in enumerate(tokens) if token in ends), None)
            text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True).removeprefix(self.template.lead)
            found.append((text, len(tokens), "length") if end is None else (text, end + 1, "stop"))
        return found


def _resumed(partial: Path, identity: dict[str, Any], batches: list[list[tuple[int, int]]]) -> list[str]:
    """The lines of whole batches that an earlier attempt with the same settings wrote; the file is cut back to them."""
    if not partial.is_file():
        return []
    lines = partial.read_text().split("\n")[:-1]  # not splitlines: text may hold other line ends
    keep = 0
    if lines and lines[0] == json.dumps(identity):
        for part in batches:
            if keep + len(part) > len(lines) - 1:
                break
            keep += len(part)
    kept = lines[1 : keep + 1]
    partial.write_text("".join(line + "\n" for line in [json.dumps(identity), *kept]) if kept else "")
    return kept


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The lines of a samples file.

    Raises:
        HalosError: there is none, one is not a sample, or one occurs twice.
    """
    if not path.is_file():
        raise HalosError(f"there is no samples file {path}; make it with `python -m halos sample`")
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, int]] = set()
    for number, line in enumerate(path.open(), 1):
        try:
            row = json.loads(line)
            key = (row["prompt_id"], row["sample"])
            if not isinstance(row["response"], str):
                raise TypeError("response is not text")
        except (ValueError, TypeError, KeyError) as error:
            raise HalosError(
                f"{path}, line {number} is not a sample ({type(error).__name__}: {error}); delete it and sample again"
            ) from None
        if key in seen:
            raise HalosError(f"{path}, line {number}: sample {key[1]} of prompt {key[0]} is there twice; sample again")
        seen.add(key)
        rows.append(row)
    if not rows:
        raise HalosError(f"{path} holds no samples; delete it and sample again")
    return rows
