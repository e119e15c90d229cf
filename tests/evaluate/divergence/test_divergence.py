"""The log-probabilities of a cell's own samples: those of the models, of the tokens that were sampled."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from halos.errors import HalosError
from halos.evaluate.divergence.compute import divergence
from halos.evaluate.divergence.divergence import Divergence
from halos.models.load import load
from halos.pretrained import read_tokenizer
from halos.sample.run import sample
from halos.sample.samples import read_samples, write_samples
from halos.settings import dump
from halos.tokens.template import Template
from tests.conftest import World


@dataclass(frozen=True)
class Case:
    world: World
    policy: Path
    samples: Path
    output: Path

    def run(self, **changes: Any) -> Divergence:
        base = self.world.base
        options: dict[str, Any] = {
            "config": self.world.slice("runs/d/m/sft/seed1"), "model": self.policy / "model",
            "manifest": self.policy / "manifest.json", "reference": base / "model",
            "reference_manifest": base / "manifest.json", "store": self.world.store, "samples": self.samples,
            "output": self.output, "tokens_per_microbatch": 200,
        }  # fmt: skip
        divergence(**{**options, **changes})
        return Divergence.read(self.output)


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained policy, and two samples of it to each of some prompts."""
    folder = tmp_path_factory.mktemp("divergence")
    policy = world.train(folder / "policy", "sft")
    prompts = folder / "prompts.yaml"
    prompts.write_text(
        dump({"prompts": "p", "limit": 6, "samples": 2, "max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0})
    )
    cell, test = world.slice("runs/d/m/sft/seed1"), world.results / "data/d/test.parquet"
    sample(cell, [prompts], [test], policy / "model", world.store, [folder / "p.jsonl"], 4)
    return policy, folder / "p.jsonl"


@pytest.fixture
def case(world: World, made: tuple[Path, Path], tmp_path: Path) -> Case:
    return Case(world, *made, tmp_path / "p.json")


def expected(model: Path, samples: Path) -> dict[tuple[str, int], float]:
    """The sums, one sample at a time and over the whole vocabulary."""
    network, template = load(model, "sdpa").eval(), Template(read_tokenizer(model))
    sums = {}
    for one in read_samples(samples):
        [prompt] = template.prompts([one.prompt], 60)
        ids = torch.tensor([*prompt.ids, *one.response_ids])
        with torch.no_grad():
            logps = network(ids[None]).logits[0].double().log_softmax(-1)
        at = range(len(prompt.ids), len(ids))
        sums[one.prompt_id, one.sample] = float(sum(logps[k - 1, ids[k]] for k in at))
    return sums


def test_they_are_the_models_own_sums_over_the_sampled_tokens(case: Case) -> None:
    found = case.run()
    policy, reference = (expected(model, case.samples) for model in (case.policy / "model", case.world.base / "model"))
    assert len(found.responses) == len(policy) == 12
    for one in found.responses:
        key = one.prompt_id, one.sample
        np.testing.assert_allclose([one.policy, one.reference], [policy[key], reference[key]], rtol=1e-4)
    assert max(abs(one.policy - one.reference) for one in found.responses) > 0.1
    assert (found.prompts, found.temperature, found.left_out) == (6, 1.0, {})


def test_a_model_does_not_diverge_from_itself(case: Case) -> None:
    found = case.run(reference=case.policy / "model", reference_manifest=case.policy / "manifest.json")
    assert {one.policy - one.reference for one in found.responses} == {0.0}
    assert found.weights == found.reference_weights


def test_a_hash_chooses_the_prompts_with_all_their_samples(case: Case) -> None:
    few, all_of_them = case.run(prompts=2), case.run()
    chosen = {one.prompt_id for one in few.responses}
    assert (len(few.responses), len(chosen), few.prompts) == (4, 2, 2)
    assert chosen < {one.prompt_id for one in all_of_them.responses}
    assert chosen == {one.prompt_id for one in case.run(prompts=2, tokens_per_microbatch=4096).responses}


def test_samples_without_token_ids_are_left_out_and_counted(case: Case, tmp_path: Path) -> None:
    samples = read_samples(case.samples)
    some = [one.model_copy(update={"response_ids": None}) if k < 3 else one for k, one in enumerate(samples)]
    write_samples(some, tmp_path / "some.jsonl")
    found = case.run(samples=tmp_path / "some.jsonl")
    assert (len(found.responses), found.left_out) == (9, {"without token ids": 3})
    write_samples([one.model_copy(update={"response_ids": None}) for one in samples], tmp_path / "none.jsonl")
    with pytest.raises(HalosError, match="no response whose token ids are known"):
        case.run(samples=tmp_path / "none.jsonl")


def test_samples_of_another_tokenizer_and_no_prompts_are_refused(case: Case, tmp_path: Path) -> None:
    other = [one.model_copy(update={"template": "0" * 64}) for one in read_samples(case.samples)]
    write_samples(other, tmp_path / "other.jsonl")
    with pytest.raises(HalosError, match="another tokenizer or chat template"):
        case.run(samples=tmp_path / "other.jsonl")
    with pytest.raises(HalosError, match="--prompts is 0"):
        case.run(prompts=0)


def test_a_reference_with_another_vocabulary_is_refused(case: Case, tmp_path: Path) -> None:
    """As a policy of another base model would have it."""
    other = shutil.copytree(case.world.base / "model", tmp_path / "other/model")
    content = json.loads((other / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    (one, first), (two, second) = sorted(vocab.items())[-2:]
    vocab |= {one: second, two: first}
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(HalosError, match="of their tokens differ"):
        case.run(vocabulary=[other])
