"""meta.json of a sequence store and report.json of tokenize: counts, lengths, truncations, drops and hashes."""

from __future__ import annotations

from halos.files import JsonFile, Record


class LengthQuantiles(Record):
    """Token counts at the quantiles 0, .05, .25, .5, .75, .95 and 1, keyed by the quantile; empty without sequences."""

    prompt: dict[str, int]
    response: dict[str, int]


class SplitTokens(Record):
    """Counts of one split of a sequence store.

    Attributes:
        records: feedback records read.
        prompts_with_dropped_turns: prompts whose oldest turns did not fit.
        truncated_responses: responses cut to what max_length leaves them.
        responses_without_end: responses that the data marks as cut, so that they get no end-of-turn token.
        sequences: real responses, one sequence each.
        dropped: records left out, by reason.
        length_quantiles: lengths of prompts as stored, and of responses before max_length cuts them.
    """

    records: int
    prompts_with_dropped_turns: int
    truncated_responses: int
    responses_without_end: int
    sequences: int
    dropped: dict[str, int]
    length_quantiles: LengthQuantiles


class StoreMeta(JsonFile):
    """meta.json of a sequence store: the settings it was made with, its counts and its hashes.

    Attributes:
        template: sha256 of the chat template and of the tokenizer's vocabulary.
        n_prompts: distinct prompts.
        n_responses: sequences with a real response.
        n_sequences: all sequences, the mismatched ones included.
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


class TokensReport(StoreMeta):
    """report.json of tokenize: the store's meta.json, and the counts of each split."""

    train: SplitTokens
    test: SplitTokens
