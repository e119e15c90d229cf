"""How often the intervals of tables and figures hold the truth, and how often a table marks a method that is no better.

    python -m benchmarks.coverage            # 2000 studies of each kind: a quarter of an hour
    python -m benchmarks.coverage --studies 400

Studies are made up, with a known truth: seeds and prompts crossed, as in a grid, and each answer won or lost by chance.
The odds of a win are those of the method, changed by the seed and by the prompt (logits; standard deviations
`seed_effect` and 1). The truth is the win rate over all prompts and seeds; with one seed, over that seed's prompts.

- win rate: `statistics.estimate`, as of a judge; 95 % are wanted.
- difference: `statistics.difference` of two methods that differ by .1; 95 % are wanted.
  With two seeds what they add is pooled over a table of 12 such methods, as tables do it.
- winner: tables of 12 methods where no one is best: all equal, or two equal ones ahead of ten; how many tables mark
  one as better than all others (`statistics.winner`), or find any difference (Holm); at most 5 % are wanted.
- strength: `strengths.strengths` of six methods, every pair compared: by a judge that scores each response once, so
  that a prompt's comparisons hang together, or by one that is asked about each pair anew; 95 % are wanted, on average
  over the methods. The log odds between two of them are the difference of their strengths, which differ by 0 to 2
  (near), or by up to 9 (far: some win one comparison in a hundred); the truth is the strengths that fit the true win
  rates best.

Writes benchmarks/results/coverage.csv: a row each, with the share of studies and its standard error.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import choix
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from halos.report import statistics, strengths

RESULTS = Path(__file__).parent / "results/coverage.csv"
COLUMNS = ("what", "seeds", "prompts", "win_rate", "seed_effect", "wanted", "share", "error", "studies")
SEEDS = (1, 2, 3, 5)
EFFECTS = (0.0, 0.2, 0.6)
"""Standard deviation between seeds, in logits: 0.2 is .05 of a win rate of one half, 0.6 is .14."""
RATES = (0.03, 0.5, 0.95)
METHODS = 12
TOURNAMENTS = {"near": (-1.0, -0.5, 0.0, 0.0, 0.5, 1.0), "far": (-5.0, -1.0, 0.0, 1.0, 1.0, 4.0)}
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Study:
    """A way to make tables of wins: (methods, seeds, prompts) of zeros and ones.

    Attributes:
        rates: the win rate of each method, over all seeds and prompts.
        effect: standard deviation between seeds, logits.
    """

    rates: tuple[float, ...]
    seeds: int
    effect: float
    prompts: int = 240

    def draw(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """The tables, and the true win rate of each method: with one seed, that seed's own."""
        middle = np.array([logit(rate, float(np.hypot(self.effect, 1))) for rate in self.rates])
        of_seeds = middle[:, None] + self.effect * rng.normal(size=(len(self.rates), self.seeds))
        odds = of_seeds[:, :, None] + rng.normal(size=self.prompts)
        truth = mean_rate(of_seeds[:, 0], 1.0) if self.seeds == 1 else np.array(self.rates)
        return (rng.random(odds.shape) < expit(odds)).astype(float), truth


def mean_rate(middle: Array, spread: float) -> Array:
    """Mean of expit(middle + spread * a normal)."""
    rate: Array = expit(middle[:, None] + spread * NODES) @ WEIGHTS / WEIGHTS.sum()
    return rate


@cache
def logit(rate: float, spread: float) -> float:
    return float(brentq(lambda middle: mean_rate(np.array([middle]), spread)[0] - rate, -30, 30))


def win_rates(study: Study, studies: int, seed: int) -> float:
    """Share of studies whose interval of the first method's win rate holds the truth."""
    rng, held = np.random.default_rng(seed), 0
    for _ in range(studies):
        tables, truth = study.draw(rng)
        e = statistics.estimate(tables[0], bounded=True, seeds=pooled(tables))
        held += e.low <= truth[0] <= e.high
    return held / studies


def differences(study: Study, studies: int, seed: int, draws: int = 2000) -> float:
    """Share of studies whose interval of the difference of the first two methods holds the truth."""
    rng, held = np.random.default_rng(seed), 0
    for _ in range(studies):
        tables, truth = study.draw(rng)
        d = statistics.difference(tables[0], tables[1], draws, seeds=pooled(tables), bounded=True)
        held += d.low <= truth[0] - truth[1] <= d.high
    return held / studies


def winners(study: Study, studies: int, seed: int, draws: int = 2000) -> float:
    """Share of tables that mark one method as better than all others."""
    rng, marked = np.random.default_rng(seed), 0
    for _ in range(studies):
        tables, _ = study.draw(rng)
        marked += statistics.winner(list(tables), draws, pooled(tables), bounded=True) is not None
    return marked / studies


def findings(study: Study, studies: int, seed: int, draws: int = 2000) -> float:
    """Share of tables with any difference from the first method that is significant after Holm's correction."""
    rng, found = np.random.default_rng(seed), 0
    for _ in range(studies):
        tables, _ = study.draw(rng)
        p = [
            statistics.difference(table, tables[0], draws, seeds=pooled(tables), bounded=True).p for table in tables[1:]
        ]
        found += statistics.holm(p).min() < 0.05
    return found / studies


@dataclass(frozen=True)
class Tournament:
    """A way to make comparisons of every pair of methods: (pairs, seeds, prompts) of zeros and ones.

    Attributes:
        strengths: of the methods, before seeds and prompts change them.
        effect: standard deviation between seeds, logits.
        own: standard deviation of what a prompt adds to a method, the same for all its seeds, logits.
        scored: whether each response has one score, by which all of its comparisons are decided.
    """

    strengths: tuple[float, ...]
    seeds: int
    effect: float
    scored: bool
    prompts: int = 240
    own: float = 0.5

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return list(combinations(range(len(self.strengths)), 2))

    def draw(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """The comparisons, and the true strengths: with one seed, that seed's own."""
        first, second = np.array(self.pairs).T
        middle = np.array(self.strengths)
        of_seeds = middle[:, None] + self.effect * rng.normal(size=(len(middle), self.seeds))
        odds = of_seeds[:, :, None] + self.own * rng.normal(size=(len(middle), 1, self.prompts))
        if self.scored:  # the difference of two Gumbel variables is logistic
            scores = odds + rng.gumbel(size=odds.shape)
            won = scores[first] > scores[second]
        else:
            lead = odds[first] - odds[second]
            won = rng.random(lead.shape) < expit(lead)
        if self.seeds == 1:
            return won.astype(float), self.fitted(tuple(of_seeds[:, 0]), 0.0)
        return won.astype(float), self.fitted(self.strengths, self.effect)

    @cache  # noqa: B019  # a handful of them, for as long as the program runs
    def fitted(self, middle: tuple[float, ...], effect: float) -> Array:
        """The strengths that fit the true win rates best, of mean 0."""
        spread = float(np.hypot(effect, self.own)) * 2**0.5
        rates = np.zeros((len(middle),) * 2)
        for i, j in self.pairs:
            rates[i, j] = mean_rate(np.array([middle[i] - middle[j]]), spread)[0]
            rates[j, i] = 1 - rates[i, j]
        best: Array = choix.ilsr_pairwise_dense(rates, max_iter=100_000)
        centred: Array = best - best.mean()
        return centred


def tournaments(study: Tournament, studies: int, seed: int, draws: int = 2000) -> Array:
    """Share of studies whose interval of a method's strength holds the truth, method by method."""
    rng, held = np.random.default_rng(seed), np.zeros(len(study.strengths))
    for _ in range(studies):
        comparisons, truth = study.draw(rng)
        estimates = strengths.strengths(study.pairs, comparisons, draws)
        held += [e.low <= value <= e.high for e, value in zip(estimates, truth, strict=True)]
    return held / studies


def pooled(tables: Array) -> statistics.Seeds | None:
    return statistics.pooled(list(tables), bounded=True) if tables.shape[1] == 2 else None


def measure(studies: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    for seeds, rate, effect in product(SEEDS, RATES, EFFECTS):
        study = Study((rate,) * (METHODS if seeds == 2 else 1), seeds, effect)
        yield row("win rate", study, "0.95", win_rates(study, studies, seed), studies)
    for seeds, rate, effect in product(SEEDS, (0.05, 0.5), EFFECTS):
        study = Study((rate + 0.1, *(rate,) * (METHODS - 1 if seeds == 2 else 1)), seeds, effect)
        yield row("difference", study, "0.95", differences(study, studies, seed), studies)
    tables = studies // 4
    for seeds, effect in product(SEEDS, EFFECTS):
        if seeds > 1 or effect == 0:  # one seed each may well differ by its seed
            for what, rates in (("all equal", (0.5,) * METHODS), ("two equal ahead", (0.7,) * 2 + (0.3,) * 10)):
                study = Study(rates, seeds, effect)
                yield row(f"winner, {what}", study, "<= 0.05", winners(study, tables, seed), tables)
            study = Study((0.5,) * METHODS, seeds, effect)
            yield row("any difference, all equal", study, "<= 0.05", findings(study, tables, seed), tables)
    yield from strength_rows(tables, seed)


def strength_rows(studies: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    for (name, middle), scored, seeds, effect in product(TOURNAMENTS.items(), (True, False), SEEDS, EFFECTS):
        if seeds > 1 or effect == 0:  # of one seed, its own strengths are the truth
            tournament = Tournament(middle, seeds, effect, scored)
            share = float(tournaments(tournament, studies, seed).mean())
            error = (share * (1 - share) / studies) ** 0.5  # at most: a study has six intervals
            what = f"strength, {name}, {'scored' if scored else 'asked'}"
            values = (what, seeds, tournament.prompts, "", effect, "0.95", f"{share:.4f}", f"{error:.4f}", studies)
            yield dict(zip(COLUMNS, values, strict=True))


def row(what: str, study: Study, wanted: str, share: float, studies: int) -> dict[str, Any]:
    error = (share * (1 - share) / studies) ** 0.5
    values = (what, study.seeds, study.prompts, study.rates[-1], study.effect, wanted)
    return dict(zip(COLUMNS, (*values, f"{share:.4f}", f"{error:.4f}", studies), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="of each kind (default: 2000); tables: a quarter")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with arguments.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for found in measure(arguments.studies):
            print(*found.values(), sep="  ", flush=True)
            writer.writerow(found)


if __name__ == "__main__":
    main()
