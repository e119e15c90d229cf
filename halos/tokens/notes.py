"""What `tokenize` says about a store, a line for each kind of thing that happened to its texts."""

from __future__ import annotations

from collections.abc import Iterator

from halos.tokens.report import SplitTokens

SENTENCES = {
    "prompts_with_dropped_turns": "prompts lost their oldest turns, which did not fit max_prompt_length",
    "prompts_joined": "prompts have turns that were joined, as the chat template has no place for them as they are",
    "prompts_with_lost_text": "prompts have text that the chat template does not show",
    "prompts_spelling_special_tokens": "prompts have text that spells special tokens of the tokenizer",
    "responses_spelling_special_tokens": "responses have text that spells special tokens of the tokenizer",
    "truncated_responses": "responses were cut to what max_length leaves them",
    "responses_without_end": "responses are marked as cut, and get no end-of-turn token",
    "sampled_responses": "responses are learned as the very tokens that a model sampled",
    "sampled_with_another_template":
        "responses were sampled with another tokenizer or chat template, so that their text was tokenized anew",
    "equal_pairs": "pairs were dropped: both sides are the same tokens, as they are or as max_length cuts them",
    "contradicting_labels": "labels were dropped: an equal response to the same prompt has the opposite label",
    "equal_groups": "groups were dropped: all of their responses are the same tokens",
}  # fmt: skip
"""Count of SplitTokens -> what there is such a number of."""
ADVISED = (1.0, 4 / 3)
"""(desirable_weight * desirable) / (undesirable_weight * undesirable), as the authors of KTO advise it: Ethayarajh et
al. 2024, section 4.2 (arXiv 2402.01306)."""


def notes(split: str, counts: SplitTokens) -> Iterator[str]:
    """Lines about a split: its size, then each count that is not 0, then the drops by reason."""
    yield f"{split}: {counts.records} records, {counts.sequences} responses"
    for name, sentence in SENTENCES.items():
        if number := getattr(counts, name):
            yield f"{split}: {number} {sentence}"
    for what, drops in (("records", counts.dropped), ("responses", counts.dropped_responses)):
        for reason, number in drops.items():
            yield f"{split}: {number} {what} were dropped ({reason})"


def balance(desirable: int, undesirable: int) -> str | None:
    """One line about the labels of the train split, and where they are out of balance, the weights that would restore
    it; None where there are no labels."""
    if not desirable and not undesirable:
        return None
    line = f"train: {desirable} desirable and {undesirable} undesirable responses"
    if not desirable or not undesirable:
        missing = "undesirable" if desirable else "desirable"
        return f"{line}: a loss of labels learns little from one kind alone: add {missing} ones, or use another"
    ratio, (low, high) = desirable / undesirable, ADVISED
    line += f" ({ratio:.2g} : 1)"
    if low / high <= ratio <= high:
        return line
    name, least, most = (
        ("undesirable_weight", ratio / high, ratio / low)
        if ratio > high
        else ("desirable_weight", low / ratio, high / ratio)
    )
    return (
        f"{line}: the authors of KTO advise loss weights by which desirable_weight * {desirable} is 1 to 4/3 times "
        f"undesirable_weight * {undesirable}: {name} between {least:.3g} and {most:.3g}, with the other one at 1, or "
        f"balance_labels: true for equal weights in total"
    )
