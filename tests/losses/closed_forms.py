"""The closed form of every loss on Python floats, written out from its definition."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean, pvariance
from typing import Any

Rows = list[list[float]]


@dataclass(frozen=True)
class Case:
    """A global batch without padding: role -> for each example, a number for each token of its response."""

    policy: dict[str, Rows]
    reference: dict[str, Rows]
    values: dict[str, Rows]
    rewards: dict[str, list[float]]
    desirable: list[bool]
    scores: list[float]
    advantages: list[float]
    margins: list[float]

    def take(self, indices: Sequence[int]) -> Case:
        """Some of the examples."""

        def part(found: Any) -> Any:
            return {k: part(v) for k, v in found.items()} if isinstance(found, dict) else [found[i] for i in indices]

        return Case(**{f.name: part(getattr(self, f.name)) for f in fields(self)})


Form = Callable[..., list[float]]
FORMS: dict[str, Form] = {}
"""name -> function(case, at, **hyperparameters) of the losses of a case's examples. What a loss takes no gradient
through is computed from `at`: finite differences move `case` alone."""


def form(name: str) -> Callable[[Form], Form]:
    def add(function: Form) -> Form:
        FORMS[name] = function
        return function

    return add


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logistic(x: float) -> float:
    """-log sigmoid(x)."""
    return math.log(1 + math.exp(-x))


def mean(tokens: list[float]) -> float:
    return fmean(tokens) if tokens else 0.0


def ratios(case: Case, role: str, over: Callable[[list[float]], float] = sum) -> list[float]:
    """The sum, or the mean, over each response's tokens of log pi - log ref."""
    rows = zip(case.policy[role], case.reference[role], strict=True)
    return [over([p - q for p, q in zip(*row, strict=True)]) for row in rows]


def implicit(case: Case, beta: float) -> list[tuple[float, float]]:
    """Of each pair, the rewards x = beta r_w and y = beta r_l."""
    return [(beta * x, beta * y) for x, y in zip(ratios(case, "chosen"), ratios(case, "rejected"), strict=True)]


@form("sft")
def sft(case: Case, at: Case) -> list[float]:
    return [-sum(row) for row in case.policy["response"]]


@form("csft")
def csft(case: Case, at: Case, chosen_token: str, rejected_token: str) -> list[float]:
    """The control tokens are part of the prompts: the likelihood is of all that follows them."""
    return [-sum(x + y) for x, y in zip(case.policy["chosen"], case.policy["rejected"], strict=True)]


@form("dpo")
def dpo(case: Case, at: Case, beta: float, margin_weight: float) -> list[float]:
    pairs = zip(implicit(case, beta), case.margins, strict=True)
    return [logistic(x - (y + margin_weight * margin)) for (x, y), margin in pairs]


@form("f_dpo")
def f_dpo(case: Case, at: Case, beta: float, divergence: str, alpha: float) -> list[float]:
    """The reward is beta f'(u) of the ratio u = pi / ref of a whole response."""
    slope = {
        "reverse_kl": math.log,
        "forward_kl": lambda u: -1 / u,
        "js": lambda u: math.log(2 * u / (1 + u)),
        "alpha": lambda u: (1 - u**-alpha) / alpha,
    }[divergence]
    pairs = zip(ratios(case, "chosen"), ratios(case, "rejected"), strict=True)
    return [logistic(beta * (slope(math.exp(x)) - slope(math.exp(y)))) for x, y in pairs]


@form("wpo")
def wpo(case: Case, at: Case, beta: float) -> list[float]:
    """A pair counts by the geometric mean of the token probabilities of each response, the two multiplied."""
    weights = [
        math.prod(math.prod(map(math.exp, row)) ** (1 / max(1, len(row))) for row in pair)
        for pair in zip(at.policy["chosen"], at.policy["rejected"], strict=True)
    ]
    return [w * loss for w, loss in zip(weights, dpo(case, at, beta, 0.0), strict=True)]


@form("dpo_norm")
def dpo_norm(case: Case, at: Case, beta: float) -> list[float]:
    pairs = zip(ratios(case, "chosen", mean), ratios(case, "rejected", mean), strict=True)
    return [logistic(beta * (x - y)) for x, y in pairs]


@form("rdpo")
def rdpo(case: Case, at: Case, beta: float, alpha: float) -> list[float]:
    """beta log(pi / ref) is the labellers' reward less alpha for each token: theirs is that plus alpha len."""
    rewards = [
        [beta * r + alpha * len(row) for r, row in zip(ratios(case, role), case.policy[role], strict=True)]
        for role in ("chosen", "rejected")
    ]
    return [logistic(x - y) for x, y in zip(*rewards, strict=True)]


@form("ld_dpo")
def ld_dpo(case: Case, at: Case, beta: float, alpha: float) -> list[float]:
    """A likelihood is that of the first tokens, as many as the shorter response has, times that of the rest ^ alpha."""

    def desensitised(logps: dict[str, Rows], role: str) -> list[float]:
        shorter = [min(len(x), len(y)) for x, y in zip(logps["chosen"], logps["rejected"], strict=True)]
        return [sum(row[:n]) + alpha * sum(row[n:]) for row, n in zip(logps[role], shorter, strict=True)]

    rewards = [
        [p - q for p, q in zip(desensitised(case.policy, role), desensitised(case.reference, role), strict=True)]
        for role in ("chosen", "rejected")
    ]
    return [logistic(beta * (x - y)) for x, y in zip(*rewards, strict=True)]


@form("cdpo")
def cdpo(case: Case, at: Case, beta: float, epsilon: float) -> list[float]:
    """The cross-entropy of the model's (q, 1 - q), q = sigmoid(x - y), from the labels' (1 - epsilon, epsilon)."""
    chances = [sigmoid(x - y) for x, y in implicit(case, beta)]
    return [-(1 - epsilon) * math.log(q) - epsilon * math.log(1 - q) for q in chances]


@form("robust")
def robust(case: Case, at: Case, beta: float, epsilon: float) -> list[float]:
    """The right loss of a noisy label is the one that is in expectation the loss of the clean one. Let a be that of a
    label as it is and b that of the label turned round:

        (1 - epsilon) a + epsilon b = logistic(m),    (1 - epsilon) b + epsilon a = logistic(-m)

    solved for a by Cramer's rule.
    """
    keep, turn = 1 - epsilon, epsilon
    margins = [x - y for x, y in implicit(case, beta)]
    return [(logistic(m) * keep - turn * logistic(-m)) / (keep * keep - turn * turn) for m in margins]


@form("exo")
def exo(case: Case, at: Case, beta: float, epsilon: float) -> list[float]:
    """KL(q || p) over the two responses, q the softmax of the implicit rewards."""

    def one(x: float, y: float) -> float:
        q = [math.exp(z) / (math.exp(x) + math.exp(y)) for z in (x, y)]
        return sum(a * math.log(a / b) for a, b in zip(q, (1 - epsilon, epsilon), strict=True))

    return [one(x, y) for x, y in implicit(case, beta)]


@form("ipo")
def ipo(case: Case, at: Case, tau: float) -> list[float]:
    pairs = zip(ratios(case, "chosen", mean), ratios(case, "rejected", mean), strict=True)
    return [(x - y - 1 / (2 * tau)) ** 2 for x, y in pairs]


@form("hinge")
def hinge(case: Case, at: Case, beta: float) -> list[float]:
    return [max(0.0, 1 - (x - y)) for x, y in implicit(case, beta)]


@form("nca")
def nca(case: Case, at: Case, beta: float) -> list[float]:
    """With K = 2 responses, the winner has all the weight: -log sigmoid(x) - 1/K sum over both of log sigmoid(-.)."""
    return [-math.log(sigmoid(x)) - sum(math.log(sigmoid(-z)) for z in (x, y)) / 2 for x, y in implicit(case, beta)]


@form("bco")
def bco(case: Case, at: Case, beta: float) -> list[float]:
    """A classifier of chosen against rejected by x - z and y - z; z is between the two kinds' means, and constant."""
    chosen, rejected = zip(*implicit(at, beta), strict=True)
    z = (fmean(chosen) + fmean(rejected)) / 2
    return [-math.log(sigmoid(x - z)) - math.log(1 - sigmoid(y - z)) for x, y in implicit(case, beta)]


@form("sppo")
def sppo(case: Case, at: Case, beta: float) -> list[float]:
    """Squares of r - (P - 1/2) / beta, P the probability to win: 1 and 0."""
    found = zip(ratios(case, "chosen"), ratios(case, "rejected"), strict=True)
    return [sum((r - (p - 0.5) / beta) ** 2 for r, p in zip(pair, (1, 0), strict=True)) for pair in found]


@form("aot")
def aot(case: Case, at: Case, beta: float, epsilon: float) -> list[float]:
    """Both lists of margins are sorted whole and compared place by place; the places are constant."""

    def margins(logps: dict[str, Rows]) -> list[float]:
        return [sum(x) - sum(y) for x, y in zip(logps["chosen"], logps["rejected"], strict=True)]

    u, before = margins(case.policy), margins(at.policy)
    order = sorted(range(len(before)), key=before.__getitem__)
    losses = [math.nan] * len(u)
    for i, v in zip(order, sorted(margins(at.reference)), strict=True):
        q = sigmoid(beta * (u[i] - v))
        losses[i] = -(1 - epsilon) * math.log(q) - epsilon * math.log(1 - q)
    return losses


@form("aot_unpaired")
def aot_unpaired(case: Case, at: Case, beta: float, epsilon: float) -> list[float]:
    """Chosen and rejected rewards are sorted apart and compared place by place; a comparison is shared by its two rows.

    Rows with the same reward, such as empty responses, share the losses of their places.
    """
    halves = [0.0] * len(case.desirable)
    before, now = zip(*implicit(at, beta), strict=True), zip(*implicit(case, beta), strict=True)
    (chosen, rejected), (x, y) = map(list, before), list(map(list, now))
    order, partners = (sorted(range(len(r)), key=r.__getitem__) for r in (chosen, rejected))
    for i, j in zip(order, partners, strict=True):
        q = sigmoid(x[i] - y[j])
        loss = -(1 - epsilon) * math.log(q) - epsilon * math.log(1 - q)
        for rewards, row in ((chosen, i), (rejected, j)):
            same = [k for k, reward in enumerate(rewards) if reward == rewards[row]]
            for k in same:
                halves[k] += loss / 2 / len(same)
    return halves


@form("apo_zero")
def apo_zero(case: Case, at: Case, beta: float) -> list[float]:
    return [sigmoid(-x) + sigmoid(y) for x, y in implicit(case, beta)]


@form("apo_down")
def apo_down(case: Case, at: Case, beta: float) -> list[float]:
    return [sigmoid(x) + sigmoid(y - x) for x, y in implicit(case, beta)]


@form("discopop")
def discopop(case: Case, at: Case, beta: float, tau: float) -> list[float]:
    """A blend of the logistic and the exponential loss of the margin, by a weight that the margin itself sets."""
    margins = [x - y for x, y in implicit(case, beta)]
    return [(1 - sigmoid(m / tau)) * logistic(m) + sigmoid(m / tau) * math.exp(-m) for m in margins]


@form("simpo")
def simpo(case: Case, at: Case, beta: float, gamma_beta_ratio: float) -> list[float]:
    """-log sigmoid(beta mean_w - beta mean_l - gamma)."""
    gamma = gamma_beta_ratio * beta
    pairs = zip(case.policy["chosen"], case.policy["rejected"], strict=True)
    return [logistic(beta * mean(x) - beta * mean(y) - gamma) for x, y in pairs]


@form("alphapo")
def alphapo(case: Case, at: Case, beta: float, gamma_beta_ratio: float, alpha: float) -> list[float]:
    """-log sigmoid(beta (q_l - q_w) / alpha - gamma), q = p^-alpha, p the geometric mean of the token probabilities."""
    pairs = zip(case.policy["chosen"], case.policy["rejected"], strict=True)
    p = [[math.exp(mean(row)) ** -alpha for row in pair] for pair in pairs]
    return [logistic(beta * (y - x) / alpha - gamma_beta_ratio * beta) for x, y in p]


@form("cpo")
def cpo(case: Case, at: Case, beta: float, sft_weight: float) -> list[float]:
    pairs = zip(case.policy["chosen"], case.policy["rejected"], strict=True)
    return [logistic(beta * (sum(x) - sum(y))) + sft_weight * -mean(x) for x, y in pairs]


@form("rrhf")
def rrhf(case: Case, at: Case, sft_weight: float) -> list[float]:
    pairs = zip(case.policy["chosen"], case.policy["rejected"], strict=True)
    return [max(0.0, mean(y) - mean(x)) - sft_weight * sum(x) for x, y in pairs]


@form("slic")
def slic(case: Case, at: Case, delta: float, sft_weight: float) -> list[float]:
    pairs = zip(case.policy["chosen"], case.policy["rejected"], strict=True)
    return [max(0.0, delta - sum(x) + sum(y)) - sft_weight * sum(x) for x, y in pairs]


@form("orpo")
def orpo(case: Case, at: Case, odds_ratio_weight: float) -> list[float]:
    """-log p_w - weight log sigmoid(log OR), OR = odds(p_w) / odds(p_l), odds(p) = p / (1 - p), p a token's mean
    probability; sigmoid(log OR) = OR / (1 + OR). A response without tokens has no p."""

    def one(x: list[float], y: list[float]) -> float:
        if not (x and y):
            return -mean(x)
        p, q = math.exp(fmean(x)), math.exp(fmean(y))
        odds_ratio = (p / (1 - p)) / (q / (1 - q))
        return -math.log(p) - odds_ratio_weight * math.log(odds_ratio / (1 + odds_ratio))

    return [one(x, y) for x, y in zip(case.policy["chosen"], case.policy["rejected"], strict=True)]


@form("bradley_terry")
def bradley_terry(case: Case, at: Case, margin_weight: float, centre_weight: float) -> list[float]:
    """-log of e^x / (e^x + e^(y + margin)), and the square of the sum."""

    def one(x: float, y: float, margin: float) -> float:
        behind = y + margin_weight * margin
        return -math.log(math.exp(x) / (math.exp(x) + math.exp(behind))) + centre_weight * (x + y) ** 2

    return [one(*pair) for pair in zip(case.rewards["chosen"], case.rewards["rejected"], case.margins, strict=True)]


@form("kto")
def kto(case: Case, at: Case, beta: float, desirable_weight: float, undesirable_weight: float) -> list[float]:
    """lambda - v: the value v of a gain is lambda_D sigmoid(beta (r - z)), of a loss lambda_U sigmoid(beta (z - r))."""
    z = max(0.0, fmean(ratios(at, "mismatched")))

    def one(r: float, desirable: bool) -> float:
        if desirable:
            return desirable_weight - desirable_weight * sigmoid(beta * (r - z))
        return undesirable_weight - undesirable_weight * sigmoid(beta * (z - r))

    return [one(r, d) for r, d in zip(ratios(case, "response"), case.desirable, strict=True)]


def surrogate(log_ratio: float, advantage: float, epsilon: float) -> float:
    ratio = math.exp(log_ratio)
    return min(ratio * advantage, min(max(ratio, 1 - epsilon), 1 + epsilon) * advantage)


def divergence(log_ratio: float) -> float:
    """ref / pi - 1 - log(ref / pi)."""
    return 1 / math.exp(log_ratio) - 1 + log_ratio


def discounted(rewards: Sequence[float], gamma: float) -> float:
    """sum over k of gamma^k rewards[k]."""
    return sum(gamma**k * reward for k, reward in enumerate(rewards))


def whole_rewards(case: Case, reward: str) -> list[float]:
    return case.scores if reward == "score" else [1.0 if d else -1.0 for d in case.desirable]


@form("ppo")
def ppo(case: Case, at: Case, reward: str, gamma: float, gae_lambda: float, **weights: float) -> list[float]:
    """A_t = sum over k of (gamma lambda)^k delta_{t+k}, delta_t = R_t + gamma V_{t+1} - V_t, nothing after the end;
    then less the mean and over the deviation of all tokens of the batch. The return is sum over k of gamma^k R_{t+k}.
    """
    rewards: Rows = []
    advantages: Rows = []
    for values, last in zip(at.values["response"], whole_rewards(at, reward), strict=True):
        n = len(values)
        rewards.append([last if t == n - 1 else 0.0 for t in range(n)])
        after = [*values, 0.0]
        errors = [rewards[-1][t] + gamma * after[t + 1] - after[t] for t in range(n)]
        advantages.append([discounted(errors[t:], gamma * gae_lambda) for t in range(n)])
    tokens = [a for row in advantages for a in row]
    centre, scale = (fmean(tokens), math.sqrt(pvariance(tokens) + 1e-8)) if tokens else (0.0, 1.0)
    losses = []
    for i, row in enumerate(rewards):
        loss = 0.0
        for t in range(len(row)):
            d = case.policy["response"][i][t] - case.reference["response"][i][t]
            error = case.values["response"][i][t] - discounted(row[t:], gamma)
            loss -= surrogate(d, (advantages[i][t] - centre) / scale, weights["clip"])
            loss += weights["kl_weight"] * divergence(d) + weights["value_weight"] * error**2 / 2
        losses.append(loss)
    return losses


@form("grpo")
def grpo(case: Case, at: Case, beta: float, epsilon: float) -> list[float]:
    losses = []
    for p, q, a in zip(case.policy["response"], case.reference["response"], case.advantages, strict=True):
        tokens = [x - y for x, y in zip(p, q, strict=True)]
        losses.append(mean([beta * divergence(d) - surrogate(d, a, epsilon) for d in tokens]))
    return losses
