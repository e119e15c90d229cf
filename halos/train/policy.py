"""The policy of a run as a network, before it is placed on devices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from halos.errors import HalosError
from halos.forward.networks import ResponseLogps, SequenceScores, ValueHead, states_size
from halos.forward.packable import Trial, check_training_mode, own_outputs
from halos.models.fused import check_liger
from halos.models.lora import Coverage, coverage, weights_of
from halos.models.policy import begin
from halos.pretrained import read_config
from halos.registry import suggest
from halos.train.inputs import Inputs


@dataclass(frozen=True)
class Policy:
    """A network to train, and what its construction decided.

    Attributes:
        network: `ResponseLogps`, or `SequenceScores` for the loss of a reward model.
        value_head: the network's value head, where the loss has one.
        tokenizer: the model's tokenizer; None where it is the parent's unchanged.
        control: role -> id of the token before that role's responses.
        parameters: number of the model's weights, without a value head.
        coverage: which of them the training changes.
        unpacked_because: why the model cannot run packed rows; None where it can.
        unchecked_because: why gradient checkpointing is off though it was asked for; None where it is not.
    """

    network: ResponseLogps | SequenceScores
    value_head: ValueHead | None
    tokenizer: Any
    control: dict[str, int]
    parameters: int
    coverage: Coverage
    unpacked_because: str | None
    unchecked_because: str | None

    @classmethod
    def begin(cls, inputs: Inputs, gradient_checkpointing: bool, trial: Trial | None = None) -> tuple[Policy, Trial]:
        """The parent's model, extended as the stage wants; its new weights are drawn from torch's generator.

        Args:
            inputs: the run's inputs.
            gradient_checkpointing: run forward passes again in the backward pass.
            trial: the findings of the process that reads the weights: the network is then built without them.

        Returns:
            The policy, and what trying it out has shown.
        """
        if inputs.settings.liger:
            check_liger(read_config(inputs.parent))
        model, tokenizer, control = load_model(inputs, weights=trial is None)
        parameters = weights_of(model)
        unchecked_because = _checkpoint_activations(model) if gradient_checkpointing else None
        loss = inputs.loss
        head = ValueHead(states_size(model)) if loss.head == "value" else None
        if head is not None and inputs.value_head is not None:
            _load_head(head, inputs.value_head)
        own = inputs.stage.make_forward()
        network = SequenceScores(model) if loss.head == "score" else ResponseLogps(model, head, own)
        if trial is None:
            trial = Trial.of(network, inputs.longest)
            check_training_mode(network, inputs.longest)
            if isinstance(network, ResponseLogps) and own is not None:
                _check_own(network, inputs)
        else:
            trial.apply(network)
        because = trial.unpacked_because
        policy = cls(network, head, tokenizer, control, parameters, coverage(model), because, unchecked_because)
        return policy, trial


def _check_own(network: ResponseLogps, inputs: Inputs) -> None:
    """Refuse a plugin's forward pass whose outputs the loss, or its cached reference, do not fit."""
    name, loss = type(network.own).__name__, inputs.loss
    outputs, gives_logps = own_outputs(network)
    if lacking := [output for output in loss.needs_outputs if output not in outputs]:
        what = f"the loss {inputs.stage.loss_name} reads {lacking[0]!r}"
        raise HalosError(f"{what}, which the forward pass {name} does not give{suggest(lacking[0], outputs)}")
    if inputs.reference is not None and not gives_logps:
        raise HalosError(
            f"the forward pass {name} gives other log-probabilities than those that the reference was cached with: set "
            "sync_reference, whose live reference is run by the same pass (a number above the run's steps keeps it as "
            "it begins), or take a loss without a reference"
        )


def _load_head(head: ValueHead, file: Path) -> None:
    """Load the value head that another run was trained to.

    Raises:
        HalosError: it reads hidden states of another size.
    """
    saved = load_file(file)
    sizes = [weights["layers.0.weight"].shape[1] for weights in (saved, head.state_dict())]
    if sizes[0] != sizes[1]:
        raise HalosError(
            f"{file} is the value head of another model: it reads hidden states of {sizes[0]} numbers, and this "
            f"model's have {sizes[1]}; delete {file.parent} and run snakemake again"
        )
    head.load_state_dict(saved)


def _checkpoint_activations(model: Any) -> str | None:
    """Switch on gradient checkpointing, a matter of memory alone; the reason, as a clause, if the model has none."""
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError:  # by transformers, of classes without it
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return f"{type(base).__name__} has none, so that training takes more memory"
    return None


def load_model(inputs: Inputs, weights: bool = True, quantised: bool = True) -> tuple[Any, Any, dict[str, int]]:
    """A run's model, tokenizer and control tokens, see `halos.models.policy.begin`.

    Args:
        inputs: the run's inputs.
        weights: whether weights are read; if not, the model is on the meta device.
        quantised: whether it is quantised, if its entry has a `quantization`.
    """
    lora, given = inputs.stage.lora, inputs.settings
    settings = None if lora is None else lora.model_dump()
    quantization = given.quantization if quantised else None
    return begin(inputs.parent, given.attention, inputs.loss, settings, inputs.stage.freeze, weights, quantization)
