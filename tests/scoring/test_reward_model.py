"""Saved reward models: the score that any other program would read off them, whatever is scored beside it."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig, pipeline

from halos.cli import main
from halos.data import feedback as F
from halos.errors import HalosError
from halos.evaluate.judging.settings import Judge
from halos.models.rewards import check_reward_model
from halos.reference.cache import read_scores
from halos.reference.compute import reference
from halos.scoring.reward_model import RewardModel
from halos.settings import dump, identity
from halos.tokens.store import Store
from halos.tokens.template import Template
from tests.conftest import World

CLOSE: dict[str, Any] = {"rel": 0, "abs": 1e-5}


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that trained a reward model, eagerly: its scores are apart."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    folder = tmp_path_factory.mktemp("rm")
    world.train(folder, "bradley_terry", changes={"lr": 1e-2, "examples": 48})
    for number, handler in before.items():
        signal.signal(number, handler)
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> RewardModel:
    return RewardModel(run / "model", precision="fp32", tokens_per_microbatch=2048)


@pytest.fixture(scope="module")
def texts(world: World) -> tuple[list[list[F.Turn]], list[str]]:
    """Prompts and responses of the test split, of many lengths."""
    records = list(F.read(world.results / "data/d/test.parquet"))[:12]
    pairs = [(record.prompt, response) for record in records for response in record.responses]
    return [prompt for prompt, _ in pairs], [response for _, response in pairs]


def plain(folder: Path, prompts: list[list[F.Turn]], responses: list[str]) -> list[float]:
    """The logits of transformers' own class, one unpadded sequence at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    logits = []
    for prompt, response in zip(prompts, responses, strict=True):
        turns = [*prompt, {"role": "assistant", "content": response}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits.append(copy.deepcopy(network)(input_ids=torch.tensor([ids])).logits.item())  # it may keep state
    return logits


def elsewhere(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a model's folder with another config."""
    shutil.copytree(source, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))
    return folder


def test_scores_are_those_that_training_reads_of_the_same_texts(
    world: World, run: Path, model: RewardModel, tmp_path: Path
) -> None:
    file, store = tmp_path / "scores.safetensors", Store(world.store)
    reference(world.slice("runs/d/m/bradley_terry/seed1"), run, world.store, "scores", file, 2048)
    cached = read_scores(file, store)
    rows: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    for row in range(store.n_responses):
        prompt, response = store.sequence(row)
        rows[tuple(prompt.tolist()), tuple(response.tolist())] = row
    records = [*F.read(world.results / "data/d/train.parquet")][:30]
    prompts = [record.prompt for record in records for _ in record.responses]
    responses = [response for record in records for response in record.responses]
    template = Template(AutoTokenizer.from_pretrained(run / "model"))
    ids = [tuple(p.ids or ()) for p in template.prompts(prompts, 1000)]
    keys = list(zip(ids, (tuple(response.ids or ()) for response in template.responses(responses)), strict=True))
    known = [key in rows for key in keys]  # all but those that the store has truncated
    assert sum(known) > 0.9 * len(known)
    rewards = model.rewards(prompts, responses)
    expected = [cached[rows[key]] for key in keys if key in rows]
    in_store = [reward for reward, is_known in zip(rewards, known, strict=True) if is_known]
    assert in_store == pytest.approx(expected, **CLOSE)
    assert np.std(expected) > 0.05  # so that to agree means something


def test_scores_are_those_of_transformers_itself(
    run: Path, model: RewardModel, texts: tuple[list[list[F.Turn]], list[str]]
) -> None:
    prompts, responses = texts
    rewards = model.rewards(prompts, responses)
    assert rewards == pytest.approx(plain(run / "model", prompts, responses), **CLOSE)
    turns = [*prompts[0], {"role": "assistant", "content": responses[0]}]
    text = model.template.tokenizer.apply_chat_template(turns, tokenize=False)
    [piped] = pipeline("text-classification", model=str(run / "model"), function_to_apply="none", device="cpu")([text])
    assert rewards[0] == pytest.approx(piped["score"], **CLOSE)


def test_a_score_does_not_depend_on_what_is_scored_beside_it(
    run: Path, model: RewardModel, texts: tuple[list[list[F.Turn]], list[str]]
) -> None:
    prompts, responses = texts
    expected = model.rewards(prompts, responses)
    order = np.random.default_rng(0).permutation(len(responses))
    shuffled = model.rewards([prompts[i] for i in order], [responses[i] for i in order])
    assert shuffled == pytest.approx([expected[i] for i in order], **CLOSE)
    narrow = RewardModel(run / "model", tokens_per_microbatch=1)  # a sequence at a time
    assert narrow.rewards(prompts, responses) == pytest.approx(expected, **CLOSE)
    twice = model.rewards([prompts[0]] * 3, [responses[0], responses[1], responses[0]])
    assert twice[0] == twice[2] != twice[1]
    assert model.rewards([], []) == []


def test_on_the_cpu_it_computes_in_float32_whatever_the_precision(
    run: Path, model: RewardModel, texts: tuple[list[list[F.Turn]], list[str]]
) -> None:
    half = RewardModel(run / "model", precision="bf16", tokens_per_microbatch=2048)
    assert half.rewards(*texts) == model.rewards(*texts)


def test_what_cannot_be_scored_gets_none_and_is_said_once(
    model: RewardModel, texts: tuple[list[list[F.Turn]], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    prompts, responses = texts
    prompt = prompts[0]
    long = " word" * 300  # of 256 positions
    with caplog.at_level(logging.WARNING):
        rewards = model.rewards([prompt] * 6, [responses[0], "", long, " \n", responses[1], ""])
    assert [score is None for score in rewards] == [False, True, True, True, False, True]
    assert [rewards[0], rewards[4]] == pytest.approx(model.rewards([prompt] * 2, responses[:2]), **CLOSE)
    [message] = [record.getMessage() for record in caplog.records]
    assert "4 of 6 responses get no score" in message
    assert "3 are empty, 1 are too long for its 256 positions, 0 have no finite score" in message


def test_what_the_chat_template_cannot_show_is_not_scored_without_it(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a response would be scored as the answer to nothing."""
    folder = shutil.copytree(run / "model", tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    refuses = "{% if messages[0].content == 'no' %}{{ raise_exception('Not that!') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refuses + template)
    scorer = RewardModel(folder)
    prompts = [[{"role": "user", "content": text}] for text in ("no", "yes")]
    with caplog.at_level(logging.WARNING):
        rewards = scorer.rewards(prompts, ["a", "a"])
    assert [reward is None for reward in rewards] == [True, False]
    [message] = [record.getMessage() for record in caplog.records]
    assert "0 have no finite score, 1: the chat template refuses the conversation: Not that!" in message


def test_the_longest_sequence_that_fits_is_scored(model: RewardModel) -> None:
    prompt = [{"role": "user", "content": "q"}]
    [head], [tail] = model.template.prompts([prompt], 1000), model.template.responses([" word"])
    assert tail.ids
    assert model.positions is not None
    word = len(model.template.responses([" word word"])[0].ids or ()) - len(tail.ids)
    most = 1 + (model.positions - len(head.ids or ()) - len(tail.ids)) // word
    assert [s is None for s in model.rewards([prompt] * 2, [" word" * most, " word" * (most + 1)])] == [False, True]


def test_a_score_that_is_no_number_is_none(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = RewardModel(run / "model")
    with torch.no_grad():
        broken.model.score.weight.fill_(torch.nan)
    assert broken.rewards([[{"role": "user", "content": "q"}]], ["a"]) == [None]
    assert "1 have no finite score" in caplog.text


@pytest.mark.parametrize("padding", ["none", "the end of a turn"])
def test_a_model_from_elsewhere_is_read_as_transformers_reads_it_unpadded(
    padding: str, run: Path, tmp_path: Path, model: RewardModel, texts: tuple[list[list[F.Turn]], list[str]]
) -> None:
    token = None if padding == "none" else model.template.end
    folder = elsewhere(run / "model", tmp_path / "rm", pad_token_id=token)
    rewards = RewardModel(folder, tokens_per_microbatch=2048).rewards(*texts)
    assert rewards == pytest.approx(plain(folder, *texts), **CLOSE)
    assert (rewards == pytest.approx(model.rewards(*texts), **CLOSE)) == (padding == "none")


def test_a_model_that_sees_both_ways_does_not_see_the_padding(
    run: Path, tmp_path: Path, texts: tuple[list[list[F.Turn]], list[str]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=1,
                        initializer_range=0.5, **sizes)  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert RewardModel(tmp_path).rewards(*texts) == pytest.approx(plain(tmp_path, *texts), **CLOSE)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_scores_of_scaled_positions_are_those_of_each_text_alone(
    kind: str, run: Path, tmp_path: Path, texts: tuple[list[list[F.Turn]], list[str]]
) -> None:
    """They are scaled by the longest text of a batch above 24 tokens, and dynamic ones by those of batches before."""
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    scale: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    fields: dict[str, Any] = {"max_position_embeddings": 24}
    if kind == "longrope":
        scale |= {"original_max_position_embeddings": 24, "short_factor": [1.0] * 8,
                  "long_factor": [2.0**k for k in range(8)]}  # fmt: skip
        fields = {"max_position_embeddings": 512, "original_max_position_embeddings": 24}
    config = AutoConfig.for_model("phi3" if kind == "longrope" else "llama", vocab_size=len(tokenizer), num_labels=1,
                                  pad_token_id=tokenizer.pad_token_id, initializer_range=0.3, rope_parameters=scale,
                                  **fields, **sizes)  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = RewardModel(tmp_path)
    model.positions = None  # also those beyond the positions that the model was trained with
    for _ in range(2):
        assert model.rewards(*texts) == pytest.approx(plain(tmp_path, *texts), **CLOSE)


def test_a_reward_model_of_weights_that_are_not_finite_is_refused(run: Path, tmp_path: Path) -> None:
    folder = elsewhere(run / "model", tmp_path / "rm")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HalosError, match=r"weights are not finite \(model.norm.weight\)"):
        RewardModel(folder)


def test_a_folder_that_is_no_reward_model_is_refused_in_one_sentence(world: World, run: Path, tmp_path: Path) -> None:
    source = run / "model"
    bare = elsewhere(source, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    three = elsewhere(source, tmp_path / "three", id2label={"0": "a", "1": "b", "2": "c"})
    two = elsewhere(source, tmp_path / "two")  # transformers leaves the labels out where there are two
    content = json.loads((two / "config.json").read_text())
    del content["id2label"]
    (two / "config.json").write_text(json.dumps(content))
    empty = elsewhere(source, tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    for folder, says in (
        (tmp_path / "none", "there is no reward model in .*none"),
        (world.base / "model", "holds LlamaForCausalLM, and a reward model is a sequence classifier"),
        (three, "is a classifier with 3 labels, of which none is known to be the reward"),
        (bare, "has no chat template"),
    ):
        for refuse in (check_reward_model, RewardModel):
            with pytest.raises(HalosError, match=says) as caught:
                refuse(folder)
            assert "\n" not in str(caught.value)
    for folder in (empty, two):  # of two labels one has no weights
        with pytest.raises(HalosError, match="cannot load the reward model") as caught:
            RewardModel(folder)
        assert "\n" not in str(caught.value)


def test_the_verb_judges_by_the_scores_of_the_model(
    world: World, run: Path, model: RewardModel, tmp_path: Path
) -> None:
    """Each prompt's second response against its target, by the run's folder and manifest."""
    data = world.results / "data/d/test.parquet"
    records = [r for r in F.read(data) if r.target is not None][:5]
    lines = [{"prompt_id": r.prompt_id, "sample": 0, "response": r.responses[1 - int(r.target == 1)]} for r in records]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judge = Judge(kind="reward_model", reward_model="rm", prompts="p")
    content = {"judge": "rm", **{k: v for k, v in identity(judge).items() if k not in judge.foreign}, "plugins": {}}
    (tmp_path / "judge.yaml").write_text(dump(content))
    arguments = {"config": "judge.yaml", "samples": "samples.jsonl", "output": "judged.json"}
    options = [word for name, file in arguments.items() for word in (f"--{name}", str(tmp_path / file))]
    files = ["--feedback", str(data), "--reward-model", str(run / "model"), str(run / "manifest.json")]
    assert main(["judge", *options, *files]) == 0
    judgement = json.loads((tmp_path / "judged.json").read_text())
    ours = model.rewards([r.prompt for r in records], [line["response"] for line in lines])
    its = model.rewards([r.prompt for r in records], [r.responses[r.target or 0] for r in records])
    assert [a["candidate_score"] for a in judgement["annotations"]] == pytest.approx(ours, **CLOSE)
    assert [a["baseline_score"] for a in judgement["annotations"]] == pytest.approx(its, **CLOSE)
    better = [1.5 if line["response"] == r.responses[r.target or 0] else 1.0 + (a > b)
              for line, r, a, b in zip(lines, records, ours, its, strict=True)]  # fmt: skip
    assert [a["preference"] for a in judgement["annotations"]] == better
