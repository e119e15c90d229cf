"""What a cell's model thinks of the responses of a preference set: the file that holds its rewards."""

from __future__ import annotations

from typing import Literal

from halos.files import JsonFile, Record


class RewardedPrompt(Record):
    """The rewards of the responses to one prompt.

    Attributes:
        category: of the record, its `source`.
        rewards: of each response: the score of a reward model; of a policy the log-ratio to its reference, the sum
            over the response's tokens in nats.
        lengths: characters of each response.
        pairs: (chosen, rejected) indices of responses.
    """

    prompt_id: str
    category: str
    rewards: tuple[float, ...]
    lengths: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]


class Rewards(JsonFile):
    """rewards/{dataset}.json of a run.

    Attributes:
        kind: of a reward model its `score`; of a policy the `log_ratio`, which times beta is its implicit reward, up to
            a term that depends on the prompt alone (Rafailov et al., 2023, arXiv 2305.18290, eq. 5).
        weights: hash of the model's weights.
        reference_weights: hash of the reference's; None for a reward model.
        left_out: {why: records with pairs that are left out}.
    """

    kind: Literal["score", "log_ratio"]
    weights: str
    reference_weights: str | None
    left_out: dict[str, int] = {}
    prompts: tuple[RewardedPrompt, ...]
