"""Models: make a base model's folder, load a policy, wrap it with LoRA, save it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos.config import read_slice
from halos.data.feedback import ROLES, read
from halos.data.template import Template, read_template
from halos.errors import HalosError
from halos.provenance import hash_content, hash_weights, write_json

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedModel

PAD, END = "<|pad|>", "<|end|>"


def make(config: Path, feedback: list[Path], output: Path) -> None:
    """The verb: make the folder of a base model, with its tokenizer, chat template and generation config.

    An `architecture` gets random weights from its seed and a tokenizer trained on `feedback`; the weights of a hub or
    local model are linked, not copied.

    Args:
        config: slice of the model's entry.
        feedback: splits to train a tokenizer on, for an `architecture`; else empty.
        output: results/models/{model}; `model/` and `manifest.json` are written there.
    """
    from transformers import AutoTokenizer, GenerationConfig

    settings = read_slice(config)
    folder = output / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if settings["architecture"] is not None:
        if not feedback:
            raise HalosError(f"model {settings['model']} trains its tokenizer on a dataset: give --feedback")
        tokenizer = _train_tokenizer(feedback, settings["tokenizer"]["vocab_size"])
        _initialise(settings, len(tokenizer), tokenizer).save_pretrained(folder)
        revision = None
    else:
        origin, revision = _find(settings)
        _link(origin, folder)
        tokenizer = AutoTokenizer.from_pretrained(origin)
    if settings["template"] is not None:
        tokenizer.chat_template = read_template(settings["template"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").exists() else None
    generation = generation or GenerationConfig()
    known = generation.eos_token_id
    ends = {*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id, Template(tokenizer).end}
    generation.eos_token_id = sorted(i for i in ends if i is not None)
    generation.pad_token_id = tokenizer.pad_token_id
    generation.do_sample = generation.temperature = generation.top_p = generation.top_k = None  # the prompt set says
    generation.save_pretrained(folder)
    weights = hash_weights(folder)
    write_json(output / "manifest.json", {**settings, "revision": revision, "weights": weights, "parents": []})


def _train_tokenizer(feedback: list[Path], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer of the feedback's text, with tokens for roles, padding and the end of a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def texts() -> Iterator[str]:
        for record in chain.from_iterable(map(read, feedback)):
            yield from (turn["content"] for turn in record.prompt)
            yield from record.responses

    special = [PAD, END, *(f"<|{role}|>" for role in ROLES)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def _initialise(settings: dict[str, Any], vocab_size: int, tokenizer: Any) -> PreTrainedModel:
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(settings["architecture"])
    model_type = fields.pop("model_type")
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    try:
        config = AutoConfig.for_model(model_type, vocab_size=vocab_size, **ids, **fields)
        torch.manual_seed(settings["seed"])
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        message = " ".join(str(error).split())
        raise HalosError(f"models.{settings['model']}.architecture: {message}") from error
    return model


def _find(settings: dict[str, Any]) -> tuple[Path, str | None]:
    """The folder of a hub or local model, and the hub commit."""
    name = settings["model"]
    if settings["path"] is not None:
        path = Path(settings["path"])
        if not (path / "config.json").is_file():
            raise HalosError(f"models.{name}: there is no model in {path} (no config.json); put one there")
        return path, None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        path = Path(snapshot_download(settings["hub"], revision=settings["revision"], allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise HalosError(
            f"models.{name}: cannot get {settings['hub']} at {settings['revision']} from the Hugging Face hub "
            f"({type(error).__name__}): check the id, your token and the network, or give a local `path:`"
        ) from error
    return path, path.name


def _link(origin: Path, folder: Path) -> None:
    """Link the weights, copy the configs."""
    weights = sorted(origin.glob("*.safetensors"))
    if not weights:
        raise HalosError(f"{origin} holds no safetensors weights; convert the model to safetensors first")
    for path in weights:
        (folder / path.name).symlink_to(path.resolve())
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)


def accelerator_for(precision: str) -> Accelerator:
    """An accelerator for the processes and devices at hand; on the CPU it also cures the slowness of denormals."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    torch.set_flush_denormal(True)
    # without `cpu=True`, processes on a machine without an accelerator would not find each other
    cpu = not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=cpu, mixed_precision="bf16" if precision == "bf16" else "no")
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise HalosError("sharded training has no checkpoints yet: launch with profiles/accelerate/ddp.yaml instead")
    if accelerator.num_processes != wanted:
        raise HalosError(f"{wanted} processes were launched but {accelerator.num_processes} found each other")
    return accelerator


def load(folder: Path, attention: str) -> PreTrainedModel:
    """A causal language model with float32 weights, from safetensors only.

    Raises:
        HalosError: the folder holds no such model, or its attention implementation is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if not (folder / "config.json").is_file():
        raise HalosError(f"there is no model in {folder}")
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention, use_safetensors=True
        )
    except ImportError as error:
        raise HalosError(f"attention {attention} is not installed here; set `attention: sdpa` ({error})") from error
    return model


def with_lora(model: PreTrainedModel, settings: dict[str, Any]) -> Any:
    """The model with fresh LoRA adapters (peft), its own weights frozen."""
    from peft import LoraConfig, get_peft_model

    targets = settings["target_modules"]
    config = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def save(model: Any, state: dict[str, torch.Tensor], parent: Path, folder: Path) -> None:
    """Write a trained model's folder: its weights, LoRA merged, and the parent's tokenizer, template and settings.

    Args:
        model: the unwrapped model.
        state: its full state dict.
        parent: the parent's model folder.
        folder: written under a temporary name and renamed when whole.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    if hasattr(model, "merge_and_unload"):
        model.load_state_dict(state)
        model = model.merge_and_unload()
        state = model.state_dict()
    model.save_pretrained(temporary, state_dict=state)
    written = {"config.json", "README.md"}
    for path in parent.iterdir():
        if path.name not in written and not path.name.startswith(".") and "safetensors" not in path.name:
            shutil.copyfile(path, temporary / path.name)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def fingerprint(config: dict[str, Any], inputs: dict[str, str]) -> str:
    """What a checkpoint belongs to: the run's slice of the config, and the hashes of its inputs."""
    return hash_content([json.loads(json.dumps(config)), inputs])
