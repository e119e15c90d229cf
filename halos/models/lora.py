"""LoRA adapters of a model: which layers they adapt, what is trained beside them, and what is left as it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from halos.errors import HalosError
from halos.models.download import without_safetensors
from halos.registry import suggest

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn

ALL = "all-linear"
"""`target_modules` of every linear layer but the output layer, and of the experts' matrices."""


class Coverage(NamedTuple):
    """What a training changes of a model.

    Attributes:
        trained: number of trained weights, those of adapters included.
        adapted: the fraction of the model's weights that are trained, or are in matrices with adapters.
        others: names of the weights that stay as they are, with `*` for the numbers of layers, or `0-3` where it is not
            all of them.
    """

    trained: int
    adapted: float
    others: tuple[str, ...]

    @property
    def text(self) -> str:
        """What is trained and what is not, for the log."""
        return (
            f"{self.trained} weights are trained, for {self.adapted:.0%} of the model's weights; as they are stay "
            f"{', '.join(self.others)}"
        )


def with_lora(model: Any, settings: dict[str, Any], scores: bool = False, tokens: Sequence[int] = ()) -> Any:
    """A model with LoRA adapters (peft) and frozen weights.

    An input and an output layer that share one matrix get a matrix each where one of them is adapted or trained: the
    merged model could not hold what was trained otherwise. Adapters of experts have no dropout, as peft has none there.

    Args:
        model: the model.
        settings: `lora` of the stage; with a `path`, training continues from the adapters saved there.
        scores: whether it is a reward model, whose new score layer is trained in full.
        tokens: ids of new tokens, whose embeddings are trained in full.

    Raises:
        HalosError: there are no adapters in `path`, or they belong to another kind of loss; or the model has no layer
            of a name that `settings` gives.
    """
    from peft import PeftModel, get_peft_model

    path = settings.get("path")
    config = _config(model, settings, scores, tokens) if path is None else _saved(Path(path), scores, tokens)
    named = [*(config.target_modules or ()), *(config.modules_to_save or ())]
    ends = [m for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None]
    if any(module in ends and _is_named(name, named) for name, module in model.named_modules()):
        untie(model)
    if path is not None:
        return PeftModel.from_pretrained(model, path, is_trainable=True)
    return get_peft_model(model, config)


def untie(model: Any) -> None:
    """Give a model that has one matrix for its input and its output an output matrix of its own, of equal values."""
    from torch import nn

    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return
    head.weight = nn.Parameter(head.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def coverage(model: Any) -> Coverage:
    """What the training of a model changes, with LoRA or without."""
    adapted: set[int] = set()
    if hasattr(model, "peft_config"):  # a run without adapters need not load peft
        from peft.tuners.lora import LoraLayer, ParamWrapper

        layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
        adapted = {id(m.get_param() if isinstance(m, ParamWrapper) else m.get_base_layer().weight) for m in layers}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total, covered = 0, 0
    packed = packed_sizes(model)
    left: dict[str, list[str]] = {}
    copies: Counter[str] = Counter()
    in_full = {name.split(".modules_to_save.")[0] for name, _ in model.named_parameters() if "modules_to_save." in name}
    for name, parameter in model.named_parameters():
        if re.search(r"\.(lora_|modules_to_save\.|token_adapter\.)", name):
            continue
        size = packed.get(id(parameter), parameter.numel())
        total += size
        plain = re.sub(r"^base_model\.model\.|\.base_layer|\.original_module", "", name)
        every = re.sub(r"\.\d+(?=\.)", ".*", plain)
        copies[every] += 1
        is_saved = name.split(".original_module.")[0] in in_full
        if parameter.requires_grad or id(parameter) in adapted or is_saved:
            covered += size
        else:
            left.setdefault(every, []).append(plain)
    others = (
        name for every, names in left.items() for name in ([every] if len(names) == copies[every] else _ranges(names))
    )
    return Coverage(trained, covered / total, tuple(others))


def _ranges(names: list[str]) -> Iterator[str]:
    """Names that differ by a number, those with consecutive ones as one: `layers.0.norm`, `layers.4-7.norm`."""
    parts = [re.match(r"(.*?\.)(\d+)(\..*)", name) for name in names]
    numbered = [(part[1], int(part[2]), part[3]) for part in parts if part is not None]
    runs = groupby(enumerate(numbered), lambda item: (item[1][0], item[1][2], item[1][1] - item[0]))
    for (begin, end, _), run in runs:
        numbers = [number for _, (_, number, _) in run]
        yield f"{begin}{numbers[0]}{f'-{numbers[-1]}' if len(numbers) > 1 else ''}{end}"


def _saved(path: Path, scores: bool, tokens: Sequence[int]) -> Any:
    from peft import PeftConfig

    if not (path / "adapter_model.safetensors").is_file():
        raise HalosError(f"lora.path: there are no adapters in {path} (no adapter_model.safetensors); "
                         f"{without_safetensors(path)}")  # fmt: skip
    saved: Any = PeftConfig.from_pretrained(str(path))
    saved_tokens = sorted(saved.trainable_token_indices or ())
    if (saved.task_type == "SEQ_CLS") != scores or saved_tokens != sorted(tokens):
        raise HalosError(f"lora.path: the adapters in {path} are of another kind of loss; leave out `path`")
    return saved


def _config(model: Any, settings: dict[str, Any], scores: bool, tokens: Sequence[int]) -> LoraConfig:
    from peft import LoraConfig

    layers, experts = list(_linear(model)), list(_experts(model))
    wanted = settings["target_modules"]
    everything = wanted == ALL
    shared = _shared(model)
    saved = _resolve("modules_to_save", settings.get("modules_to_save", ()), [n for n, _ in model.named_modules() if n])
    if everything:
        modules, parameters = [name for name in _without_ends(model, layers) if name not in shared], experts
    else:
        known = [*layers, *_names_of(model, model.get_input_embeddings())]
        modules = _resolve("target_modules", [wanted] if isinstance(wanted, str) else wanted, known)
        parameters = []
    known = [name for name, p in model.named_parameters() if p.ndim in (2, 3)]
    parameters += _resolve("target_parameters", settings.get("target_parameters", ()), known)
    modules = [name for name in modules if not _is_named(name, saved)]
    if one := [name for name in shared if name in modules or _is_named(name, saved)]:
        raise HalosError(
            f"lora: {one[0]} has its weight in common with another layer, and adapters of each could not be merged "
            "into it: take it out of the layers of `lora` (`target_modules: all-linear` leaves it out)"
        )
    taken = _taken_for_experts(model, modules)
    parameters = sorted({*parameters, *(f"{name}.weight" for name in taken)})
    modules = [name for name in modules if name not in taken]
    embeddings = _names_of(model, model.get_input_embeddings())
    if tokens and any(name in modules or _is_named(name, saved) for name in embeddings):
        raise HalosError(f"lora: the loss trains new tokens in {embeddings[0]}: take it out of the layers of `lora`")
    if in_bits := [name for name in saved if any(map(is_quantised, model.get_submodule(name).modules()))]:
        raise HalosError(
            f"lora.modules_to_save: {in_bits[0]} is quantised, and only adapters can be trained of it: take it out, or "
            "take `quantization` out of the model's entry"
        )
    dora = settings.get("dora", False)
    if dora and parameters:
        raise HalosError(
            f"lora.dora: peft has no DoRA of {parameters[0]}, which is a parameter and no layer: name layers alone in "
            "`target_modules`, or take out `dora`"
        )
    return LoraConfig(
        r=settings["r"],
        lora_alpha=settings["alpha"],
        lora_dropout=0.0 if parameters else settings["dropout"],
        use_dora=dora,
        use_rslora=settings.get("rslora", False),
        target_modules=modules,
        target_parameters=parameters or None,
        modules_to_save=saved or None,
        task_type="SEQ_CLS" if scores else "CAUSAL_LM",
        trainable_token_indices=list(tokens) or None,
    )


def _linear(model: nn.Module) -> Iterator[str]:
    """Names of the layers that multiply by their weight, outside of encoders for pictures and sound.

    A subclass of a linear layer may compute something else, such as the experts that a router chooses: it is tried out.
    Layers that peft refuses, because kernels of their model read the weight past its adapters (Mamba), are left out.
    """
    import torch
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    encoders = tuple(f"{name}." for name in _encoders(model))
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or name.startswith(encoders):
            continue
        if is_quantised(module):
            yield name
            continue
        if type(module) not in (nn.Linear, Conv1D):
            inputs = torch.linspace(-1, 1, 2 * module.weight.shape[1]).view(2, -1).to(module.weight)
            try:
                with torch.no_grad():
                    outputs: Any = module(inputs)
                    expected = nn.functional.linear(inputs, module.weight, module.bias)
            except Exception:  # any error that a model's own code raises for arguments that it does not expect
                continue
            if not isinstance(outputs, torch.Tensor) or outputs.shape != expected.shape:
                continue
            if not module.weight.is_meta and not torch.allclose(outputs, expected, rtol=1e-3, atol=1e-4):
                continue
        try:
            _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
        except ValueError:
            continue
        yield name


def is_quantised(module: nn.Module) -> bool:
    """Whether a layer is one of `halos.models.quantised`, whose `dequantised()` is its weight."""
    return hasattr(module, "dequantised")


def is_reduced(model: nn.Module) -> bool:
    """Whether a model holds weights in fewer bits than float32."""
    import torch

    return any(parameter.dtype != torch.float32 for parameter in model.parameters())


def packed_sizes(model: nn.Module) -> dict[int, int]:
    """{id: number of weights} of the parameters that hold several weights in a number, those of quantised layers."""
    layers: Iterator[Any] = filter(is_quantised, model.modules())
    return {id(layer.weight): layer.in_features * layer.out_features for layer in layers}


def quantised_share(model: nn.Module) -> float:
    """The fraction of a model's weights that are in quantised layers."""
    return sum(packed_sizes(model).values()) / weights_of(model)


def weights_of(model: nn.Module) -> int:
    """Number of weights of a model."""
    packed = packed_sizes(model)
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in model.parameters())


def quantisable(model: Any) -> Iterator[str]:
    """Names of the layers that `quantization` of a model's entry quantises: linear ones that multiply by a weight of
    their own, but the output layer."""
    shared = _shared(model)
    tied = id(getattr(model.get_input_embeddings(), "weight", None))
    for name in _without_ends(model, list(_linear(model))):
        if name not in shared and id(model.get_submodule(name).weight) != tied:
            yield name


def _encoders(model: Any) -> list[str]:
    """Names of a model's encoders for pictures and sound, which text does not run."""
    found = []
    for modality in ("image", "video", "audio"):
        try:
            encoder = model.get_encoder(modality=modality)
        except (AttributeError, TypeError, ValueError):
            continue
        if encoder is not None and encoder is not model:
            found += _names_of(model, encoder)
    return [name for name in found if name]


def _experts(model: nn.Module) -> Iterator[str]:
    """Names of the parameters that hold one matrix for each expert: (experts, rows, columns).

    DBRX's, in two dimensions, are left out: its layers read them from the module by name, which peft's wrapper lacks.
    """
    for name, module in model.named_modules():
        if "expert" in type(module).__name__.lower():
            for parameter, values in module.named_parameters(recurse=False):
                if values.ndim == 3:
                    yield f"{name}.{parameter}"


def _shared(model: Any) -> list[str]:
    """Names of the layers whose weight is also that of another, but for the input and the output layer.

    peft would give each of them adapters (Zamba's repeated block).
    """
    ends = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    layers = [(n, m.weight) for n, m in model.named_modules() if m not in ends and hasattr(m, "weight")]
    times = Counter(id(weight) for _, weight in layers)
    return [name for name, weight in layers if times[id(weight)] > 1]


def _without_ends(model: Any, layers: list[str]) -> list[str]:
    """The layers but a model's output layer, or a reward model's score."""
    ends = [module for module in (model.get_output_embeddings(), getattr(model, "score", None)) if module is not None]
    return [name for name in layers if model.get_submodule(name) not in ends]


def _taken_for_experts(model: Any, modules: list[str]) -> set[str]:
    """Layers that peft would take for experts of transformers 4, by the last part of their name.

    It then adapts the experts that transformers 5 holds in one parameter, instead of these.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    taken = set()
    for leaf in {name.rpartition(".")[2] for name in modules}:
        config = LoraConfig(target_modules=[leaf])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # it is one part of two
            taken.add(leaf)
        if leaf not in (config.target_modules or ()):
            taken.add(leaf)
    return {name for name in modules if name.rpartition(".")[2] in taken}


def _names_of(model: nn.Module, wanted: Any) -> list[str]:
    return [name for name, module in model.named_modules() if module is wanted]


def _is_named(name: str, names: Iterable[str]) -> bool:
    return any(name == other or name.endswith(f".{other}") for other in names)


def _resolve(setting: str, names: Sequence[str], known: list[str]) -> list[str]:
    """The full names of the layers or parameters that some names or the ends of names mean.

    Raises:
        HalosError: there is none of a name.
    """
    found = []
    for name in names:
        hits = [full for full in known if _is_named(full, [name])]
        if not hits:
            short = {re.sub(r".*\.\d+\.", "", full) for full in known}
            leaves = {full.rpartition(".")[2] for full in short if not full.rpartition(".")[2].isdecimal()}
            raise HalosError(f"lora.{setting}: the model has no {name!r}{suggest(name, leaves | short)}")
        found += hits
    return found
