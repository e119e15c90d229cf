"""Every loss, as a pure function of token log-probabilities, and the registry.

Notation, for a response y to a prompt x:  log pi = policy[role], log ref = reference[role], both (B, T) float32, 0
where a row has no token;  r = sum over tokens of (log pi - log ref);  s = sum over tokens of log pi;  len = number of
tokens; w and l are the chosen and the rejected response.

A loss sees no model, no config and no accelerator. What it needs is declared on its class, and the trainer and the
workflow read only that:

    view              which index table its examples come from: sft, paired, unpaired, grouped
    needs_reference   whether it wants log ref
    needs_scores      whether it wants the scores of its responses
    prepass           roles that are run once, without gradient, over the whole global batch, for `statistics`
    per_token         whether the objective is a mean over tokens of the global batch, not over its examples
    head              what the model gets beside or instead of its output layer: a `value` for each token, or a `score`
                      for each sequence (a reward model)
    control           role -> a token that stands before that role's responses

base.py says what a loss is; imitation.py, paired.py and unpaired.py hold the losses.
"""

from halos.losses import imitation as imitation
from halos.losses import paired as paired
from halos.losses import unpaired as unpaired
from halos.losses.base import Batch, Logps, Loss, Output, humanline, log_ratio, log_sigmoid, preference

__all__ = ["Batch", "Logps", "Loss", "Output", "humanline", "log_ratio", "log_sigmoid", "preference"]
