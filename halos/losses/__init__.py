"""The losses, pure functions of token log-probabilities.

Notation, for a response y to a prompt x:  log pi = policy[role], log ref = reference[role], both (B, T) float32, 0
at padding;  r = sum over tokens of (log pi - log ref);  s = sum over tokens of log pi;  len = number of
tokens; w and l are the chosen and the rejected response.

A loss sees no model, no config and no accelerator. What it needs is declared on its class, and the trainer and the
workflow read only that:

    view              the kind of its examples, an entry of halos.views.VIEWS
    needs_reference   whether it reads log ref
    needs_scores      whether it reads the scores of its responses
    needs_outputs     names of values that a plugin's forward pass must give beside log-probabilities
    prepass           roles that are run first, without gradient, over the whole global batch, for `statistics`
    per_token         whether the objective is a mean over tokens of the global batch, not over its examples
    head              a head beside the output layer, or in its place: a `value` for each token, or a `score` for each
                      sequence (a reward model)
    control           role -> a token between that role's prompts and responses

base.py has the base class, its inputs and outputs; mixture.py has weighted sums of losses; the other files have the
losses.
"""

from halos.losses import imitation as imitation
from halos.losses import lengths as lengths
from halos.losses import paired as paired
from halos.losses import reference_free as reference_free
from halos.losses import reward_model as reward_model
from halos.losses import unpaired as unpaired
from halos.losses.base import Batch, Logps, Loss, Output, humanline, log_ratio, log_sigmoid, preference

__all__ = ["Batch", "Logps", "Loss", "Output", "humanline", "log_ratio", "log_sigmoid", "preference"]
