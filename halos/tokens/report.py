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
        prompts_joined: prompts with turns that were joined, for a template that has no place for them as they are.
        prompts_with_lost_text: prompts with text that the template does not show.
        prompts_spelling_special_tokens: prompts with text that spells special tokens of the tokenizer.
        responses_spelling_special_tokens: responses likewise.
        truncated_responses: responses cut to what max_length leaves them.
        responses_without_end: responses that the data marks as cut, so that they get no end-of-turn token.
        sampled_responses: responses learned as the very tokens that a model sampled.
        sampled_with_another_template: responses whose sampled tokens are of another tokenizer or chat template, so that
            their text was tokenized anew.
        sequences: real responses, one sequence each.
        dropped: records left out, by reason.
        dropped_responses: responses left out, by reason: a record that loses all of its own is in `dropped`.
        equal_pairs: pairs left out because both sides are the same tokens, as they are or as max_length cuts them.
        contradicting_labels: labels left out because an equal response to the same prompt has the opposite one.
        equal_groups: groups left out because all their responses are the same tokens.
        length_quantiles: lengths of prompts as stored, and of responses before max_length cuts them.
    """

    records: int
    prompts_with_dropped_turns: int = 0
    prompts_joined: int = 0
    prompts_with_lost_text: int = 0
    prompts_spelling_special_tokens: int = 0
    responses_spelling_special_tokens: int = 0
    truncated_responses: int
    responses_without_end: int = 0
    sampled_responses: int = 0
    sampled_with_another_template: int = 0
    sequences: int
    dropped: dict[str, int]
    dropped_responses: dict[str, int] = {}
    equal_pairs: int = 0
    contradicting_labels: int = 0
    equal_groups: int = 0
    length_quantiles: LengthQuantiles


class StoreMeta(JsonFile):
    """meta.json of a sequence store: the settings it was made with, its counts and its hashes.

    Attributes:
        template: sha256 of the chat template and of the tokenizer's vocabulary.
        n_prompts: distinct prompts.
        n_responses: sequences with a real response.
        n_sequences: all sequences, the mismatched ones included.
        views: split -> view -> examples.
        dropped: split -> reason -> records left out.
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
    split_special_tokens: bool = True
    template: str
    n_prompts: int
    n_responses: int
    n_sequences: int
    views: dict[str, dict[str, int]]
    dropped: dict[str, dict[str, int]] = {}
    data: dict[str, str]
    files: dict[str, str]
    hash: str


class TokensReport(StoreMeta):
    """report.json of tokenize: the store's meta.json, and the counts of each split."""

    train: SplitTokens
    validation: SplitTokens
