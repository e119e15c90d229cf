"""Answers to the doctor's probes: `python -m halos.doctor.answers NAME ...` prints each as a line of JSON."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
REFUSED = "refused"
"""What the hub says to a token that it does not know."""
PATIENCE = 5.0
"""Seconds for the hub to answer at all."""


def first_line(error: BaseException) -> str:
    """The type and the first line of an exception."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def devices() -> Iterator[Answer]:
    """What torch is built for, and the GPUs that it sees."""
    import torch

    yield {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip}
    if torch.version.cuda is not None:
        yield {"driver": driver_version(), "architectures": torch.cuda.get_arch_list()}
    found = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = [about.major, about.minor]
        found.append({"name": about.name, "memory": total, "free": free, "capability": capability})
    yield {"gpus": found}


def driver_version() -> int:
    """The CUDA version of NVIDIA's driver, 1000 major + 10 minor; 0 without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    return version.value


def attention(*kernels: str) -> Iterator[Answer]:
    """{implementation: relative difference from eager, or the reason why it does not work}.

    Args:
        kernels: prebuilt kernels to try as well, OWNER/NAME@COMMIT.

    A Llama of two layers, on sequences of 64 tokens: on a GPU in bfloat16, on a CPU in float32, where only eager and
    sdpa are tried. Its weights are large enough for attention to matter.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from halos.models.attention import check_here

    gpu = torch.cuda.is_available()
    config = AutoConfig.for_model(
        "llama", hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=128, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    ids = torch.randint(128, (2, 64), device="cuda" if gpu else "cpu")
    weights, eager = None, None
    for name in (*ATTENTIONS, *kernels) if gpu else ATTENTIONS[:2]:
        try:
            check_here(name)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=name, dtype=torch.float32)
            weights = weights or model.state_dict()
            model.load_state_dict(weights)
            model = model.to(ids.device, torch.bfloat16 if gpu else torch.float32)
            with torch.no_grad():
                values = model(ids).logits.float()
            eager = values if name == "eager" else eager
            assert eager is not None, "eager does not work"
            yield {name: relative_difference(values, eager)}
        except Exception as error:
            yield {name: first_line(error)}


def relative_difference(values: Any, expected: Any) -> float:
    """The root mean square of a difference of tensors, relative to the spread of what is expected."""
    return float((values - expected).square().mean().sqrt() / expected.std())


def collective() -> Iterator[Answer]:
    """{backend, processes, sum}: a sum over one process for each GPU by NCCL, or over two on the CPU by gloo."""
    import torch

    gpus = torch.cuda.device_count()
    backend, processes = ("nccl", gpus) if gpus else ("gloo", 2)
    version = ".".join(map(str, torch.cuda.nccl.version())) if gpus else ""
    yield {"backend": f"NCCL {version}" if gpus else "gloo", "processes": processes}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        torch.multiprocessing.spawn(_add_up, (backend, processes, port), nprocs=processes)
    except torch.multiprocessing.ProcessRaisedException as error:  # its text is the traceback of a process
        yield {"failure": str(error).strip().splitlines()[-1]}


def _add_up(rank: int, backend: str, processes: int, port: int) -> None:
    """Print the sum of 1, 2, ... over the processes, each of which holds its number."""
    import torch
    from torch import distributed

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group(backend, init_method=address, rank=rank, world_size=processes)
    number = torch.tensor([rank + 1.0], device=device)
    distributed.all_reduce(number)
    if rank == 0:
        print(json.dumps({"sum": number.item()}), flush=True)
    distributed.destroy_process_group()


def package(name: str) -> Iterator[Answer]:
    """{version} of a package that can be imported."""
    yield {"version": getattr(importlib.import_module(name), "__version__", "of unknown version")}


def hub(*repositories: str) -> Iterator[Answer]:
    """Whether the hub answers and knows the account, and {repository: why the account may not read it, or None}.

    Args:
        repositories: `models/owner/name` or `datasets/owner/name`.
    """
    from huggingface_hub import HfApi, auth_check, constants, get_token
    from huggingface_hub.utils import get_session

    get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    yield {"reached": constants.ENDPOINT}
    if get_token():
        try:
            HfApi().whoami()
            yield {"token": None}
        except Exception as error:
            code = getattr(getattr(error, "response", None), "status_code", None)
            yield {"token": REFUSED if code == 401 else first_line(error)}

    def refusal(repository: str) -> Answer:
        kind, name = repository.split("/", 1)
        try:
            auth_check(name, repo_type=kind.removesuffix("s"))
            return {repository: None}
        except Exception as error:
            return {repository: first_line(error)}

    with ThreadPoolExecutor(8) as pool:
        for asked in as_completed([pool.submit(refusal, repository) for repository in repositories]):
            yield asked.result()


def cached(config: str, grid: str) -> Iterator[Answer]:
    """{place in the config: [repository, state, sentence]} of all that a grid reads from the hub, where the state is
    `cached`, `missing` or `broken`.

    The files are opened as jobs open them; this process has to be offline.
    """
    from halos.study.catalogue import load
    from halos.study.study import Study

    study = Study(load(config), grid)
    named = (*study.settings.models, *study.reference_models, *study.reward_models_of_others)
    models = [*dict.fromkeys([*named, *(cell.model for cell in study.answering)])]
    datasets = dict.fromkeys([*study.settings.datasets, *(d for d, _ in study.config.prompt_data(study.grid))])
    datasets |= dict.fromkeys(cell.dataset for cell in study.answering)
    for name in models:  # which grows by those whose tokenizers others have
        model = study.config.models[name]
        yield from _opened(f"models.{name}", partial(_model, name, model))
        yield from _opened(f"models.{name}.attention", partial(_kernel, name, model))
        yield from _opened(f"models.{name}.tokenizer", partial(_tokenizer, name, model))
        if model.tokenizer is not None and (trained_on := model.tokenizer.train_on) is not None:
            datasets[trained_on] = None
        elif model.tokenizer is not None and (other := model.tokenizer.of_model) in study.config.models:
            models += [] if other in models else [str(other)]
    for name in datasets:
        for source in study.config.datasets[name].all_sources:
            if source.on_hub:
                yield from _opened(f"datasets.{name}, {source.name}", partial(_source, source))


def _model(name: str, model: Any) -> str | None:
    """Open a model, or the one that its adapters belong to: its repository, None where it is local."""
    from halos.models.download import base_on_hub, snapshot

    base = None if model.path is None else base_on_hub(Path(model.path))
    wanted = base if model.hub is None else {"hub": model.hub, "revision": model.revision}
    if wanted is None:
        return None
    snapshot(name, **wanted)
    return f"models/{wanted['hub']}"


def _kernel(name: str, model: Any) -> str | None:
    """Open the attention kernel of a model: its repository, None where its attention is no kernel of the hub."""
    from halos.models.attention import is_kernel
    from halos.models.download import download_kernel

    if not is_kernel(model.attention):
        return None
    download_kernel(name, model.attention)
    return f"kernels/{model.attention.partition('@')[0]}"


def _tokenizer(name: str, model: Any) -> str | None:
    """Open the tokenizer of another model on the hub: that one's repository, None where a model's is not of the hub."""
    from halos.models.download import snapshot, tokenizer_on_hub

    hub = tokenizer_on_hub(model)
    if hub is None:
        return None
    snapshot(name, hub, "main", weights=False)
    return f"models/{hub}"


def _source(source: Any) -> str:
    """Open a source in each of its splits: its repository."""
    from halos.data.settings import origin

    hubs = [origin(source.open(split))["hub"] for split in source.splits]
    return f"datasets/{hubs[0]}"


def _opened(where: str, open_it: Callable[[], str | None]) -> Iterator[Answer]:
    from halos.errors import HalosError
    from halos.hub import Unavailable

    try:
        if (repository := open_it()) is not None:
            yield {where: [repository, "cached", ""]}
    except Unavailable as error:
        yield {where: [error.repository, "missing", str(error)]}
    except HalosError as error:
        yield {where: ["", "broken", str(error)]}


QUESTIONS: dict[str, Callable[..., Iterator[Answer]]] = {
    "devices": devices,
    "attention": attention,
    "collective": collective,
    "package": package,
    "hub": hub,
    "cached": cached,
}


def main(name: str, *arguments: str) -> int:
    try:
        for answer in QUESTIONS[name](*arguments):
            print(json.dumps(answer), flush=True)
    except Exception as error:
        print(json.dumps({"failure": first_line(error)}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(main(*sys.argv[1:]))
