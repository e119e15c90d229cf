"""Sampling by transformers and by vLLM side by side: tokens a second, and whether greedy responses are the same.

    make env env-vllm
    .venv/bin/python -m benchmarks.sampling --model models/SmolLM2-135M-Instruct

Each run is a process of its own, the two backends in turn. The time is of generating alone, after a first response:
without imports and weights. A second of the CPU is told beside one on the clock, because other work on the machine
slows the latter alone. All is float32 on the CPU, on as many threads as OMP_NUM_THREADS says. Where two responses
part, the gap between the logits of the two tokens is shown: up to about 1e-4 it is rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from halos.data.sources.toy import toy
from halos.sample.backends import Request, Transformers
from halos.sample.settings import SamplerSlice
from halos.sample.vllm import Vllm

PYTHON = {"transformers": Path(sys.executable), "vllm": Path(".venv-vllm/bin/python")}


def requests_for(model: Path, prompts: int, tokens: int) -> tuple[Any, list[Request]]:
    """The tokenizer, and requests for the toy dataset's test prompts, the longest first."""
    from transformers import AutoTokenizer

    from halos.tokens.template import Template

    tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
    turns = [record.prompt for record in islice(toy("test", prompts=10 * prompts, test_prompts=prompts), prompts)]
    ids = [prompt.ids or [] for prompt in Template(tokenizer).prompts(turns, 10_000)]
    return tokenizer, [Request(found, tokens, seed) for seed, found in enumerate(sorted(ids, key=len, reverse=True))]


def generate(model: Path, backend: str, prompts: int, tokens: int, batch: int) -> dict[str, Any]:
    """One run: seconds on the clock and of the CPU, and the ids of each greedy response, up to its end."""
    tokenizer, requests = requests_for(model, prompts, tokens)
    longest = len(requests[0].ids) + tokens
    what = (model, tokenizer, SamplerSlice(seed=0, attention="auto", precision="fp32"), batch, longest)
    engine = Vllm(*what, tensor_parallel=1) if backend == "vllm" else Transformers(*what)
    chunks = [requests[start : start + engine.chunk] for start in range(0, len(requests), engine.chunk)]
    engine.generate(requests[-1:], 0.0, 1.0, 0, lambda done: None)
    start = time.perf_counter(), time.process_time()
    found = [ids for chunk in chunks for ids in engine.generate(chunk, 0.0, 1.0, 0, lambda done: None)]
    spent = [time.perf_counter() - start[0], time.process_time() - start[1]]
    ends = [next((n + 1 for n, token in enumerate(ids) if token in engine.ends), len(ids)) for ids in found]
    return {"seconds": spent, "responses": [ids[:end] for ids, end in zip(found, ends, strict=True)]}


def speeds(run: dict[str, Any]) -> list[float]:
    """Tokens a second on the clock, and a second of the CPU."""
    tokens = sum(map(len, run["responses"]))
    return [tokens / seconds for seconds in run["seconds"]]


def gap(model: Path, prompt: list[int], one: list[int], other: list[int]) -> tuple[int, float]:
    """Where two responses part, and how far apart the logits of their two tokens are there."""
    import torch
    from transformers import AutoModelForCausalLM

    at = next(n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        logits = network(torch.tensor([[*prompt, *one[:at]]])).logits[0, -1]
    return at, float(abs(logits[one[at]] - logits[other[at]]))


def main() -> None:
    parser = argparse.ArgumentParser(description="tokens a second of both backends of sampling")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backend", choices=list(PYTHON), help=argparse.SUPPRESS)  # of one run
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    what = {"model": given.model, "prompts": given.prompts, "tokens": given.tokens, "batch": given.batch}
    if given.backend:
        given.output.write_text(json.dumps(generate(backend=given.backend, **what)))
        return
    runs: dict[str, list[dict[str, Any]]] = {backend: [] for backend in PYTHON}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        for _ in range(given.repeats):
            for backend, python in PYTHON.items():
                options = [f"--{name}={value}" for name, value in {**what, "backend": backend, "output": file}.items()]
                subprocess.run([python, "-m", "benchmarks.sampling", *options], check=True)
                runs[backend].append(json.loads(file.read_text()))
                clock, cpu = speeds(runs[backend][-1])
                print(f"{backend:12} {clock:6.1f} tokens/s {cpu:6.1f} a CPU second   load {os.getloadavg()[0]:.1f}",
                      flush=True)  # fmt: skip
    for backend, found in runs.items():
        for name, each in zip(("second", "CPU second"), zip(*map(speeds, found), strict=True), strict=True):
            print(f"{backend:12} median {median(each):.1f} tokens a {name} ({min(each):.1f}–{max(each):.1f})")
    _, requests = requests_for(given.model, given.prompts, given.tokens)
    ours, theirs = (runs[backend][0]["responses"] for backend in PYTHON)
    parted = [n for n in range(len(requests)) if ours[n] != theirs[n]]
    print(f"{len(requests) - len(parted)} of {len(requests)} greedy responses are the same, token for token")
    for n in parted:
        at, distance = gap(given.model, requests[n].ids, ours[n], theirs[n])
        print(f"response {n} parts at token {at}, where the logits of the two are {distance:.1e} apart")


if __name__ == "__main__":
    main()
