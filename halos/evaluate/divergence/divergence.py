"""How far a policy is from its reference on its own samples: the file that holds the log-probabilities of one cell."""

from __future__ import annotations

from halos.files import JsonFile, Record


class ResponseLogps(Record):
    """The log-probabilities of a sample: sums over its tokens, its end-of-sequence token included, in nats.

    Attributes:
        tokens: number of its tokens.
        policy: under the model that it is a sample of, at temperature 1.
        reference: under its reference.
    """

    prompt_id: str
    sample: int
    tokens: int
    policy: float
    reference: float


class Divergence(JsonFile):
    """divergence/{prompts}.json of a run.

    The mean of `policy` less `reference` over samples that were drawn at temperature 1 and top-p 1 is an unbiased
    estimate of the KL divergence of the policy from the reference, in nats per response. Of samples that were drawn
    otherwise it is the mean log-ratio on these.

    Attributes:
        weights: hash of the policy's weights.
        reference_weights: hash of the reference's.
        temperature, top_p: of the samples.
        prompts: those that were chosen, by a hash.
        left_out: {why: samples of these prompts that are left out}.
    """

    weights: str
    reference_weights: str
    temperature: float | None
    top_p: float | None
    prompts: int
    left_out: dict[str, int] = {}
    responses: tuple[ResponseLogps, ...]
