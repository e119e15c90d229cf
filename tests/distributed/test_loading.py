"""Sharded weights are read by one process, which hands them out: they are the parent's, and each is in memory once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from halos.train.inputs import Inputs
from halos.train.trainer import Trainer
from tests.conftest import CATALOGUE, World
from tests.distributed.processes import in_processes
from tests.train.architectures import ARCHITECTURES
from tests.train.runs import base_of, references

LLAMA = {key: value for key, value in CATALOGUE["models"]["m"]["architecture"].items() if key != "model_type"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "tied": ("llama", {**LLAMA, "tie_word_embeddings": True}),
    **{kind: (kind, ARCHITECTURES[kind]) for kind in ("mixtral", "jamba", "gemma3")},
}
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{kind: (kind, "sft", {}) for kind in KINDS},
    "value head": ("llama", "ppo", {}),
    "score": ("tied", "bradley_terry", {}),
    "control tokens": ("tied", "csft", {}),
    "live reference": ("jamba", "kto", {"humanline": True}),
    "adapters": ("mixtral", "lora", {"lora": LORA}),
    "adapters of the embeddings": ("tied", "lora", {"lora": {**LORA, "modules_to_save": ["embed_tokens"]}}),
    "frozen": ("llama", "sft", {"freeze": ["*embed_tokens*"]}),
}
"""What is trained -> the model, the stage and its changes: weights that are new, tied, of experts, frozen."""

BUILD = """
from pathlib import Path
from safetensors.torch import save_file
from accelerate.state import AcceleratorState
from halos.distributed.loading import gather
from halos.train.inputs import Inputs
from halos.train.trainer import Trainer

for name, (config, parent, store, *reference) in argument.items():
    trainer = Trainer(Inputs.open(Path(config), Path(parent), Path(store), [*map(Path, reference)]), Path(name), 400)
    modules = {"policy": trainer.policy} | ({} if trainer.live is None else {"live": trainer.live})
    for part, module in modules.items():
        state = {n: t.clone() for n, t in gather(module, trainer.accelerator)}
        if trainer.accelerator.is_main_process:
            trained = sorted(n for n, p in module.named_parameters() if p.requires_grad)
            save_file(state, f"{name} {part}.safetensors", {"trained": json.dumps(trained)})
    AcceleratorState().fsdp_plugin.transformer_cls_names_to_wrap = None
"""


@pytest.mark.slow
def test_every_weight_is_that_of_a_process_that_reads_them_all(world: World, tmp_path: Path) -> None:
    bases = {name: base_of(world, tmp_path / name, {"model_type": kind, **fields})
             for name, (kind, fields) in KINDS.items()}  # fmt: skip
    inputs: dict[str, list[str]] = {}
    for name, (kind, stage, changes) in RUNS.items():
        config = tmp_path / f"{name}.yaml"
        config.write_text(world.slice(f"runs/d/m/{stage}/seed1", **changes).read_text())
        files = [config, bases[kind], world.store, *references(world, bases[kind], config)]
        inputs[str(tmp_path / name)] = [*map(str, files)]
    in_processes(tmp_path, 3, BUILD, inputs)
    for name, (config, parent, store, *reference) in inputs.items():  # type: ignore[assignment]
        one = Trainer(
            Inputs.open(Path(config), Path(parent), Path(store), [*map(Path, reference)]), tmp_path / "one", 400
        )
        for part, module in {"policy": one.policy, "live": one.live}.items():
            if module is None:
                continue
            expected, file = module.state_dict(), f"{name} {part}.safetensors"
            found = load_file(file)
            assert expected.keys() == found.keys()
            assert [key for key in expected if not torch.equal(expected[key], found[key])] == [], name
            with safe_open(file, "pt") as opened:
                trained = json.loads(opened.metadata()["trained"])
            assert trained == sorted(key for key, weight in module.named_parameters() if weight.requires_grad), name


LARGE = {**LLAMA, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16, "num_attention_heads": 8,
         "num_key_value_heads": 8}  # fmt: skip
MEASURE = """
import threading, time
from pathlib import Path
from accelerate.utils import gather_object
from halos.train.inputs import Inputs
from halos.train.trainer import Trainer

def own():  # memory of the process itself, without files that it has mapped, in bytes
    lines = dict(line.split(":") for line in open("/proc/self/status").read().splitlines())
    return 1024 * int(lines["RssAnon"].split()[0])

config, parent, store = argument
inputs = Inputs.open(Path(config), Path(parent), Path(store))
import halos.models.load, peft, transformers.models.llama.modeling_llama
before, samples, done = own(), [], threading.Event()

def sample():
    while not done.wait(0.002):
        samples.append((time.monotonic(), own() - before))

thread = threading.Thread(target=sample)
thread.start()
trainer = Trainer(inputs, Path("unused"), 400)
done.set()
thread.join()
gathered = gather_object([samples])
if trainer.accelerator.is_main_process:
    print("held", json.dumps(gathered))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process's own memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_processes_hold_the_weights_together_hardly_more_than_once(
    dtype: torch.dtype, world: World, tmp_path: Path
) -> None:
    """At no time do they hold more than one and a half times the float32 weights, where processes that read them all
    would hold four times as much."""
    base = base_of(world, tmp_path, {"model_type": "llama", **LARGE})
    file = base / "model/model.safetensors"
    weights = load_file(file)
    size = sum(4 * tensor.numel() for tensor in weights.values())
    assert size > 200e6
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, file, {"format": "pt"})
    config = world.slice("runs/d/m/sft/seed1")
    output = in_processes(tmp_path, 4, MEASURE, [*map(str, (config, base, world.store))])
    [processes] = [json.loads(line.removeprefix("held")) for line in output[0] if line.startswith("held")]
    held, most = [0] * 4, 0
    for _, k, now in sorted((time, k, held) for k, samples in enumerate(processes) for time, held in samples):
        held[k] = now
        most = max(most, sum(held))
    ends = sum(samples[-1][1] for samples in processes)
    assert 0.9 * size < ends  # the shards are there
    assert most <= 1.5 * size, most / size
