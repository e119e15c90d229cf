"""report.json of a sequence store: how many rows of everything, lengths, truncations and drops."""

from __future__ import annotations

from halos.files import JsonFile, Record


class LengthQuantiles(Record):
    """Token counts at the quantiles 0, .05, .25, .5, .75, .95 and 1, keyed by the quantile; empty without sequences."""

    prompt: dict[str, int]
    response: dict[str, int]


class SplitTokens(Record):
    """What became of the records of one split.

    Attributes:
        prompts_with_dropped_turns: prompts whose oldest turns did not fit.
        truncated_responses: responses cut to what max_length leaves them.
        responses_without_end: responses that were cut before they came here, so that they get no end-of-turn token.
        dropped: records left out, by reason.
    """

    records: int
    prompts_with_dropped_turns: int
    truncated_responses: int
    responses_without_end: int
    sequences: int
    dropped: dict[str, int]
    length_quantiles: LengthQuantiles


class TokensReport(JsonFile):
    """report.json of a sequence store.

    Attributes:
        template: sha256 of the chat template and of the tokenizer's vocabulary.
        views: split -> view -> examples.
        data: split -> hash of the feedback file.
        files: name -> sha256 of each file of the store.
        hash: of all files: what trainings and references are checked against.
    """

    dataset: str
    model: str
    max_length: int
    max_prompt_length: int
    eval_examples: int
    keep_desirable: float
    keep_undesirable: float
    template: str
    n_prompts: int
    n_responses: int
    n_sequences: int
    views: dict[str, dict[str, int]]
    data: dict[str, str]
    files: dict[str, str]
    hash: str
    train: SplitTokens
    test: SplitTokens
