"""config.yaml of a folder of results/tokens: a dataset's lengths and labels, for one model."""

from __future__ import annotations

from halos.settings import Positive, Share, Slice


class StoreSlice(Slice):
    """The part of the catalogue that makes one sequence store.

    Attributes:
        max_length: tokens of prompt and response together.
        max_prompt_length: tokens of the prompt; its oldest turns are dropped first.
        eval_examples: validation prompts in the fixed evaluation subset of training.
        keep_desirable: fraction of the train split's desirable responses that is kept.
        keep_undesirable: fraction of the train split's undesirable responses that is kept.
        views: views of plugins that it has beside those of the package.
        split_special_tokens: whether text that spells a special token stays text, or becomes that control token.
    """

    dataset: str
    model: str
    max_length: Positive
    max_prompt_length: Positive
    eval_examples: Positive
    keep_desirable: Share = 1.0
    keep_undesirable: Share = 1.0
    split_special_tokens: bool = True
    views: tuple[str, ...] = ()
