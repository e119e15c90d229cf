"""Losses against those of TRL: the same log-probabilities go through the code of its trainers.

What its constructors do (data, tokenizers, devices) plays no part in a loss, so a trainer is made without them, and its
model is a table: of token log-probabilities where TRL computes them with its fused output layer, else of logits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from halos.losses.base import Batch
from halos.registry import LOSSES

N, WIDTH, VOCABULARY = 6, 7, 11


@pytest.fixture(scope="module")
def trl() -> Iterator[SimpleNamespace]:
    """TRL's trainers; they take some seconds to import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RewardTrainer
        from trl.experimental.cpo import CPOTrainer
        from trl.experimental.orpo import ORPOTrainer

        yield SimpleNamespace(dpo=DPOTrainer, kto=KTOTrainer, grpo=GRPOTrainer, reward=RewardTrainer, cpo=CPOTrainer,
                              orpo=ORPOTrainer)  # fmt: skip


def make(kind: type[Any], args: dict[str, Any] | None = None, **settings: Any) -> Any:
    """A trainer that holds no more than what its loss reads."""
    trainer = object.__new__(kind)
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
    )
    vars(trainer).update(
        accelerator=accelerator,
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(**(args or {})),
        aux_loss_enabled=False,
        is_encoder_decoder=False,
        precompute_ref_logps=True,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        **settings,
    )
    return trainer


def table(values: Tensor) -> Any:
    """A model whose outputs are looked up: a sequence's first token is its row. A prompt is that one token."""

    def forward(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        found = values[input_ids[:, 0]]
        others = torch.zeros(found.shape[:2])
        return SimpleNamespace(log_probs=found, logits=found, entropy=others, mean_logits=others, is_top1=others > 0,
                               log_sum_sq_probs=others)  # fmt: skip

    return forward


@dataclass(frozen=True)
class Responses:
    """2N responses: N chosen and N rejected, or N of an unpaired batch and N mismatched. `policy` is made of `leaf`."""

    ids: Tensor
    mask: Tensor
    leaf: Tensor
    policy: Tensor
    reference: Tensor

    @property
    def completion_mask(self) -> Tensor:
        return torch.cat([torch.zeros(2 * N, 1), self.mask], dim=1).long()

    def of(self, values: Tensor, *roles: str) -> dict[str, Tensor]:
        return dict(zip(roles, values.chunk(2), strict=True))


def responses(seed: int, shift: float = 0.0) -> Responses:
    """Random ones, none of them empty; `shift` moves every log-ratio."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(WIDTH) < torch.randint(1, WIDTH + 1, (2 * N, 1), generator=generator)
    tokens = torch.randint(VOCABULARY, mask.shape, generator=generator)
    policy, reference = (-3 * torch.rand(2 * N, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    leaf = (policy + min(shift, 0)).requires_grad_()
    ids = torch.cat([torch.arange(2 * N)[:, None], tokens], dim=1)
    return Responses(ids, mask, leaf, leaf * mask, (reference - max(shift, 0)) * mask)


def assert_equal(ours: Tensor, theirs: Tensor, leaf: Tensor) -> None:
    """Values and gradients."""
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-5, atol=1e-7)
    gradients = [torch.autograd.grad(x, leaf, retain_graph=True)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


PAIRED: list[tuple[str, str, dict[str, float], dict[str, Any]]] = [
    ("dpo", "sigmoid", {"beta": 0.1}, {"beta": 0.1}),
    ("dpo", "sigmoid", {"beta": 0.7}, {"beta": 0.7}),
    ("hinge", "hinge", {"beta": 0.1}, {"beta": 0.1}),
    ("hinge", "hinge", {"beta": 0.7}, {"beta": 0.7}),
    ("ipo", "ipo", {"tau": 0.1}, {"beta": 0.1}),
    ("ipo", "ipo", {"tau": 0.6}, {"beta": 0.6}),
    ("exo", "exo_pair", {"beta": 0.1}, {"beta": 0.1, "label_smoothing": 1e-3}),
    ("exo", "exo_pair", {"beta": 0.5, "epsilon": 0.2}, {"beta": 0.5, "label_smoothing": 0.2}),
    ("nca", "nca_pair", {"beta": 0.1}, {"beta": 0.1}),
    ("nca", "nca_pair", {"beta": 0.7}, {"beta": 0.7}),
    ("robust", "robust", {"beta": 0.1}, {"beta": 0.1, "label_smoothing": 0.1}),
    ("robust", "robust", {"beta": 0.5, "epsilon": 0.3}, {"beta": 0.5, "label_smoothing": 0.3}),
    ("bco", "bco_pair", {"beta": 0.1}, {"beta": 0.1}),
    ("bco", "bco_pair", {"beta": 0.7}, {"beta": 0.7}),
    ("sppo", "sppo_hard", {"beta": 0.1}, {"beta": 0.1}),
    ("sppo", "sppo_hard", {"beta": 0.7}, {"beta": 0.7}),
    ("aot", "aot", {"beta": 0.1}, {"beta": 0.1}),
    ("aot", "aot", {"beta": 0.7, "epsilon": 0.2}, {"beta": 0.7, "label_smoothing": 0.2}),
    ("apo_zero", "apo_zero", {"beta": 0.1}, {"beta": 0.1}),
    ("apo_zero", "apo_zero", {"beta": 0.7}, {"beta": 0.7}),
    ("apo_down", "apo_down", {"beta": 0.1}, {"beta": 0.1}),
    ("apo_down", "apo_down", {"beta": 0.7}, {"beta": 0.7}),
    ("aot_unpaired", "aot_unpaired", {"beta": 0.1}, {"beta": 0.1}),
    ("aot_unpaired", "aot_unpaired", {"beta": 0.7, "epsilon": 0.2}, {"beta": 0.7, "label_smoothing": 0.2}),
    ("dpo_norm", "sigmoid_norm", {}, {"beta": 5.0}),
    ("dpo_norm", "sigmoid_norm", {"beta": 0.7}, {"beta": 0.7}),
    ("wpo", "sigmoid", {"beta": 0.1}, {"beta": 0.1, "use_weighting": True}),
    ("wpo", "sigmoid", {"beta": 0.7}, {"beta": 0.7, "use_weighting": True}),
    ("ld_dpo", "sigmoid", {"beta": 0.1}, {"beta": 0.1, "ld_alpha": 0.5}),
    ("ld_dpo", "sigmoid", {"beta": 0.7, "alpha": 0.0}, {"beta": 0.7, "ld_alpha": 0.0}),
    ("f_dpo", "sigmoid", {"beta": 0.1, "divergence": "js"}, {"beta": 0.1, "f_divergence_type": "js_divergence"}),
    ("f_dpo", "sigmoid", {"beta": 0.7, "divergence": "reverse_kl"}, {"beta": 0.7, "f_divergence_type": "reverse_kl"}),
    ("f_dpo", "sigmoid", {"beta": 0.7, "divergence": "forward_kl"}, {"beta": 0.7, "f_divergence_type": "forward_kl"}),
    (
        "f_dpo",
        "sigmoid",
        {"beta": 0.2, "alpha": 0.3},
        {"beta": 0.2, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    ),
    ("discopop", "discopop", {"beta": 0.1}, {"beta": 0.1}),
    ("discopop", "discopop", {"beta": 0.7, "tau": 0.5}, {"beta": 0.7, "tau": 0.5}),
]
"""A loss, its `loss_type` in TRL, its hyperparameters here and there."""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "loss_type", "ours", "theirs"), [pytest.param(*row, id=f"{row[0]}-{row[2]}") for row in PAIRED]
)
def test_paired_losses(
    trl: SimpleNamespace, name: str, loss_type: str, ours: dict[str, float], theirs: dict[str, Any], seed: int
) -> None:
    x = responses(seed)
    theirs = {"label_smoothing": 0.0, "tau": 0.05, "ld_alpha": None, "f_divergence_type": "reverse_kl",
              "use_weighting": False} | theirs  # fmt: skip
    trainer = make(
        trl.dpo,
        {"discopop_tau": theirs.pop("tau")},
        loss_types=[loss_type],
        loss_weights=[1.0],
        **theirs,
    )
    of_reference = x.reference
    if theirs["ld_alpha"] is not None:  # TRL gets the reference's sums from a pass of its own
        shorter = torch.minimum(*x.mask.sum(-1).chunk(2)).repeat(2)
        of_reference = torch.where(x.mask.cumsum(-1) > shorter[:, None], theirs["ld_alpha"], 1.0) * x.reference
    kind = torch.float32 if theirs["f_divergence_type"] == "alpha_divergence" else torch.float64  # TRL knows no other
    chosen, rejected = of_reference.sum(-1).to(kind).chunk(2)
    batch = {"input_ids": x.ids, "completion_mask": x.completion_mask, "ref_chosen_logps": chosen,
             "ref_rejected_logps": rejected}  # fmt: skip
    expected = trainer._compute_loss(table(x.policy.to(kind)), batch, return_outputs=False)
    roles = ("chosen", "rejected")
    loss = LOSSES[name](**ours)
    policy, reference, facts = x.of(x.policy, *roles), x.of(x.reference, *roles), Batch(x.of(x.mask, *roles))
    statistics = loss.statistics(policy, reference, facts)
    if name == "bco":  # TRL's has no reward shift
        statistics = {"reward": torch.zeros(N)}
    statistics = {key: values.detach() for key, values in statistics.items()}
    output = loss(policy, reference, Batch(facts.mask, statistics=statistics))
    assert_equal(output.losses.mean(), expected, x.leaf)
    if name not in ("ipo", "dpo_norm", "f_dpo"):  # whose rewards are by token here, or of the divergence
        found = {"chosen": output.chosen_rewards, "rejected": output.rejected_rewards}
        found["accuracies"] = output.metrics["rewards/accuracy"]
        for key, values in found.items():
            assert values.mean().item() == pytest.approx(trainer._metrics["eval"][f"rewards/{key}"][0])


@pytest.mark.parametrize("seed", range(3))
def test_sft(trl: SimpleNamespace, seed: int) -> None:
    x = responses(seed)
    trainer = make(trl.dpo, loss_types=["sft"], loss_weights=[1.0], ld_alpha=None, f_divergence_type="reverse_kl",
                   use_weighting=False, beta=0.1)  # fmt: skip
    zeros = torch.zeros(N)
    batch = {"input_ids": x.ids, "completion_mask": x.completion_mask, "ref_chosen_logps": zeros,
             "ref_rejected_logps": zeros}  # fmt: skip
    expected = trainer._compute_loss(table(x.policy), batch, return_outputs=False)
    losses = LOSSES["sft"]()({"response": x.policy[:N]}, {}, Batch({"response": x.mask[:N]})).losses
    assert_equal(losses.sum() / x.mask[:N].sum(), expected, x.leaf)


@pytest.mark.parametrize("shift", [-0.5, 0.5])  # a z of 0, and above
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.33, 0.5)])
@pytest.mark.parametrize(("beta", "seed"), [(0.1, 0), (0.1, 1), (0.5, 2)])
def test_kto(trl: SimpleNamespace, beta: float, seed: int, weights: tuple[float, float], shift: float) -> None:
    x = responses(seed, shift)
    desirable = torch.arange(N) % 3 != 1
    trainer = make(trl.kto, loss_type="kto", calculate_KL=True, beta=beta, desirable_weight=weights[0],
                   undesirable_weight=weights[1])  # fmt: skip
    sequences = {"input_ids": x.ids, "completion_mask": x.completion_mask, "attention_mask": torch.ones_like(x.ids)}
    batch = {key: value[:N] for key, value in sequences.items()}
    batch |= {f"KL_{key}": value[N:] for key, value in sequences.items()}
    ref_logps, ref_kl_logps = x.reference.sum(-1).chunk(2)
    batch |= {"label": desirable, "ref_logps": ref_logps, "ref_KL_logps": ref_kl_logps}
    expected = trainer._compute_loss(table(x.policy), batch, return_outputs=False)
    roles = ("response", "mismatched")
    loss = LOSSES["kto"](beta, *weights)
    policy, reference, mask = (x.of(values, *roles) for values in (x.policy, x.reference, x.mask))
    statistics = {"kl": loss.statistics(policy, reference, Batch(mask))["kl"].detach()}
    assert (trainer._metrics["eval"]["kl"][0] > 0) == (shift > 0)
    output = loss(policy, reference, Batch(mask, desirable, statistics=statistics))
    assert_equal(output.losses.mean(), expected, x.leaf)


def of_logits(x: Responses, logits: Tensor, rows: list[int]) -> tuple[dict[str, Tensor], Batch, dict[str, Tensor]]:
    """Ours of some pairs, policy and batch, and TRL's batch of the same."""
    logps = logits[:, :-1].log_softmax(-1).gather(-1, x.ids[:, 1:, None])[..., 0] * x.mask
    roles = ("chosen", "rejected")
    policy, mask = ({role: v[rows] for role, v in x.of(values, *roles).items()} for values in (logps, x.mask))
    theirs = {}
    response = x.completion_mask
    for role, places in zip(roles, torch.arange(2 * N).chunk(2), strict=True):
        found = places[rows]
        theirs[f"{role}_input_ids"] = x.ids[found]
        theirs[f"{role}_labels"] = x.ids[found].masked_fill(response[found] == 0, -100)
        theirs[f"{role}_attention_mask"] = torch.cat([torch.ones(len(rows), 1), response[found, 1:]], dim=1).long()
    return policy, Batch(mask), theirs


def random_logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    logits = 2 * torch.randn(2 * N, WIDTH + 1, VOCABULARY, generator=generator, dtype=torch.float64)
    return logits.requires_grad_()


@pytest.mark.parametrize(("weight", "seed"), [(0.1, 0), (0.1, 1), (1.5, 2)])
def test_orpo(trl: SimpleNamespace, weight: float, seed: int) -> None:
    """One pair at a time: TRL's likelihood term is a mean over the tokens of a batch."""
    x, logits = responses(seed), random_logits(seed)
    trainer = make(trl.orpo, beta=weight, padding_value=0)
    for row in range(N):
        policy, batch, theirs = of_logits(x, logits, [row])
        expected, metrics = trainer.get_batch_loss_metrics(table(logits), theirs)
        output = LOSSES["orpo"](weight)(policy, {}, batch)
        assert_equal(output.losses.mean(), expected, logits)
        assert output.chosen_rewards is not None
        assert output.chosen_rewards.item() == pytest.approx(metrics["rewards/chosen"], rel=1e-5)


@pytest.mark.parametrize(("beta", "ratio", "seed"), [(10.0, 0.3, 0), (10.0, 0.3, 1), (2.0, 0.8, 2)])
def test_simpo(trl: SimpleNamespace, beta: float, ratio: float, seed: int) -> None:
    x, logits = responses(seed), random_logits(seed)
    policy, batch, theirs = of_logits(x, logits, list(range(N)))
    trainer = make(trl.cpo, loss_type="simpo", beta=beta, simpo_gamma=ratio * beta, alpha=0.0, cpo_alpha=0.0,
                   label_smoothing=0.0, pad_token_id=0)  # fmt: skip
    expected, _ = trainer.get_batch_loss_metrics(table(logits), theirs)
    assert_equal(LOSSES["simpo"](beta, ratio)(policy, {}, batch).losses.mean(), expected, logits)


@pytest.mark.parametrize(("alpha", "seed"), [(0.25, 0), (0.25, 1), (-0.6, 2)])
def test_alphapo(trl: SimpleNamespace, alpha: float, seed: int) -> None:
    x, logits = responses(seed), random_logits(seed)
    policy, batch, theirs = of_logits(x, logits, list(range(N)))
    trainer = make(trl.cpo, loss_type="simpo", beta=2.0, simpo_gamma=1.6, alpha=alpha, cpo_alpha=0.0,
                   label_smoothing=0.0, pad_token_id=0)  # fmt: skip
    expected, _ = trainer.get_batch_loss_metrics(table(logits), theirs)
    assert_equal(LOSSES["alphapo"](2.0, 0.8, alpha)(policy, {}, batch).losses.mean(), expected, logits)


@pytest.mark.parametrize(("beta", "weight", "seed"), [(0.1, 1.0, 0), (0.1, 1.0, 1), (0.7, 0.3, 2)])
def test_cpo(trl: SimpleNamespace, beta: float, weight: float, seed: int) -> None:
    """One pair at a time: TRL's likelihood term is a mean over the tokens of a batch."""
    x, logits = responses(seed), random_logits(seed)
    trainer = make(trl.cpo, loss_type="sigmoid", beta=beta, alpha=0.0, cpo_alpha=weight, label_smoothing=0.0,
                   pad_token_id=0)  # fmt: skip
    for row in range(N):
        policy, batch, theirs = of_logits(x, logits, [row])
        expected, metrics = trainer.get_batch_loss_metrics(table(logits), theirs)
        output = LOSSES["cpo"](beta, weight)(policy, {}, batch)
        assert_equal(output.losses.mean(), expected, logits)
        assert output.chosen_rewards is not None
        assert output.chosen_rewards.item() == pytest.approx(metrics["rewards/chosen"], rel=1e-5)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_responses_that_occur_twice_share_their_ranks(trl: SimpleNamespace, name: str) -> None:
    x = responses(0)
    rows = torch.tensor([0, 1, 2, 0, 1, 0]).repeat(2) + N * (torch.arange(2 * N) >= N)
    policy, reference, mask = x.policy[rows], x.reference[rows], x.mask[rows]
    trainer = make(trl.dpo, loss_types=[name], loss_weights=[1.0], ld_alpha=None, f_divergence_type="reverse_kl",
                   use_weighting=False, beta=0.7, label_smoothing=0.1)  # fmt: skip
    chosen, rejected = reference.sum(-1).chunk(2)
    batch = {"input_ids": x.ids, "completion_mask": x.completion_mask, "ref_chosen_logps": chosen,
             "ref_rejected_logps": rejected}  # fmt: skip
    expected = trainer._compute_loss(table(policy), batch, return_outputs=False)
    given = [x.of(values, "chosen", "rejected") for values in (policy, reference, mask)]
    loss = LOSSES[name](0.7, 0.1)
    statistics = {key: values.detach() for key, values in loss.statistics(*given[:2], Batch(given[2])).items()}
    assert_equal(loss(*given[:2], Batch(given[2], statistics=statistics)).losses.mean(), expected, x.leaf)


@pytest.mark.parametrize(("beta", "epsilon", "seed"), [(0.1, 0.2, 0), (0.1, 0.2, 1), (0.7, 0.4, 2)])
def test_cdpo(trl: SimpleNamespace, beta: float, epsilon: float, seed: int) -> None:
    """TRL smooths the labels of CPO, which is DPO without a reference: it is given log-ratios instead."""
    x = responses(seed)
    trainer = make(trl.cpo, loss_type="sigmoid", beta=beta, label_smoothing=epsilon, alpha=0.0)
    expected, chosen, rejected = trainer.cpo_loss(*(x.policy - x.reference).sum(-1).chunk(2))
    roles = ("chosen", "rejected")
    policy, reference, mask = (x.of(values, *roles) for values in (x.policy, x.reference, x.mask))
    output = LOSSES["cdpo"](beta, epsilon)(policy, reference, Batch(mask))
    torch.testing.assert_close(output.losses, expected)
    assert_equal(output.losses.mean(), expected.mean(), x.leaf)
    torch.testing.assert_close((output.chosen_rewards, output.rejected_rewards), (chosen, rejected))


@pytest.mark.parametrize(("beta", "epsilon", "seed"), [(0.01, 0.01, 0), (0.01, 0.01, 1), (0.3, 0.4, 2)])
def test_grpo(trl: SimpleNamespace, beta: float, epsilon: float, seed: int) -> None:
    """Offline: the policy that is said to have sampled the responses is the reference."""
    x = responses(seed)
    advantages = torch.randn(2 * N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    trainer = make(
        trl.grpo,
        {"use_bias_correction_kl": False, "delta": None},
        loss_type="grpo",
        importance_sampling_level="token",
        beta=beta,
        epsilon_low=epsilon,
        epsilon_high=epsilon,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (x.policy, torch.zeros_like(x.policy), None),
    )
    prompts = {"prompt_ids": x.ids[:, :1], "prompt_mask": torch.ones(2 * N, 1)}
    batch = prompts | {"completion_ids": x.ids[:, 1:], "completion_mask": x.mask.long(), "advantages": advantages,
                       "old_per_token_logps": x.reference, "ref_per_token_logps": x.reference}  # fmt: skip
    expected = trainer._compute_loss(None, batch)
    one = {"response": x.mask}
    output = LOSSES["grpo"](beta, epsilon)(
        {"response": x.policy}, {"response": x.reference}, Batch(one, advantages=advantages)
    )
    assert_equal(output.losses.mean(), expected, x.leaf)


@pytest.mark.parametrize(("margin", "centre"), [(0.0, 0.0), (1.0, 0.0), (0.0, 0.25), (1.0, 0.01)])
@pytest.mark.parametrize("seed", range(3))
def test_bradley_terry(trl: SimpleNamespace, seed: int, margin: float, centre: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(2 * N, 1, generator=draw, dtype=torch.float64)
    margins = torch.randn(N, generator=draw, dtype=torch.float64)
    scores.requires_grad_()
    trainer = make(trl.reward, {"center_rewards_coefficient": centre or None})
    batch = {"input_ids": torch.arange(2 * N)[:, None]} | ({"margin": margins} if margin else {})
    expected = trainer.compute_loss(table(scores), batch)
    rewards = dict(zip(("chosen", "rejected"), scores[:, 0].chunk(2), strict=True))
    losses = LOSSES["bradley_terry"](margin, centre)({}, {}, Batch({}, rewards=rewards, margins=margins)).losses
    assert_equal(losses.mean(), expected, scores)
