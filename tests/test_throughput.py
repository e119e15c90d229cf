"""The benchmark against TRL: its data, its sums, and that it refuses to compare unequal work. No time is asserted."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from benchmarks import loss_memory
from benchmarks.throughput.__main__ import draw, everything, write
from benchmarks.throughput.compare import COLUMNS, Comparison, check_equal, run
from benchmarks.throughput.data import PROFILES, Model, Profile, lengths, make_model, records
from benchmarks.throughput.flops import Example, Shape, useful_flops
from benchmarks.throughput.sides import check_ids
from halos.errors import HalosError
from halos.tokens.template import Template

TINY = Model(
    "tiny",
    {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
     "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "tie_word_embeddings": True},
    batch=2,
    lr=1e-2,
)  # fmt: skip
SHORT = Profile("short", 20, 1.0, 0.4, 0.4, 0.3, batch=2, max_prompt=24, max_total=40)


@pytest.mark.parametrize("prompts", [24, 3_000])
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_lengths_have_the_medians_of_the_profile_and_keep_its_limits(profile: Profile, prompts: int) -> None:
    prompt, responses = lengths(profile, prompts, seed=0)
    total = prompt[:, None] + responses
    assert np.median(total) == pytest.approx(profile.total, abs=2)
    assert np.median(prompt) / np.median(responses) == pytest.approx(profile.ratio, rel=0.15 if prompts < 100 else 0.08)
    assert prompt.max() <= profile.max_prompt
    assert total.max() <= profile.max_total
    assert total.max() > 1.3 * profile.total


def test_the_two_responses_to_a_prompt_are_correlated_in_length() -> None:
    profile = PROFILES["ultrafeedback"]
    logs = np.log(lengths(profile, 3_000, seed=0)[1]).T
    assert np.corrcoef(logs)[0, 1] == pytest.approx(profile.correlation, abs=0.08)


def test_a_conversation_has_the_drawn_number_of_tokens_and_the_same_ids_by_our_template_and_by_the_tokenizer_s(
    tmp_path: Path,
) -> None:
    make_model(TINY, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    template = Template(tokenizer)
    made = list(records(SHORT, "dpo", 6, TINY.config["vocab_size"], seed=0))
    prompts, responses = lengths(SHORT, 6, seed=0)
    for record, wanted, answers in zip(made, prompts, responses, strict=True):
        prompt = template.prompts([record.prompt], SHORT.max_prompt)[0].ids
        assert prompt is not None
        assert len(prompt) == wanted
        for text, response, length in zip(record.responses, template.responses(record.responses), answers, strict=True):
            ids = response.ids or []
            whole = [*record.prompt, {"role": "assistant", "content": text}]
            assert len(ids) == length
            assert tokenizer.apply_chat_template(whole)["input_ids"] == prompt + ids
            assert tokenizer.unk_token_id not in ids


def test_useful_flops_of_a_case_worked_by_hand() -> None:
    """A layer with hidden 4, queries 4, keys and values 2, MLP 8, vocabulary 10.

    Matrices: 4 x 4 (queries), 2 of 4 x 2 (keys, values), 4 x 4 (output), 3 of 4 x 8 (MLP): 16 + 16 + 16 + 96 = 144.
    A prompt of 3 tokens, responses of 2 and 1.
    """
    shape = Shape(layers=1, hidden=4, queries=4, keys=2, mlp=8, vocabulary=10)
    assert shape.matrices == 144
    pair = Example(3, (2, 1))
    # tokens 3 + 2 + 1; logits of 2 + 1; attended: 1 + 2 + 3 in the prompt, 4 + 5 and 4 in the responses
    shared = 6 * 144 * 6 + 6 * 4 * 10 * 3 + 12 * 4 * (6 + 9 + 4)
    assert useful_flops(shape.operations, [pair], shared=True) == shared
    # the prompt's 3 tokens, and the 6 pairs of them, once more
    assert useful_flops(shape.operations, [pair], shared=False) == shared + 6 * 144 * 3 + 12 * 4 * 6
    # a mismatched response of 2: a forward pass, a third of the operations; unshared with its prompt
    one = useful_flops(shape.operations, [Example(3, (1,))], shared=True)
    scored = 2 * 144 * 2 + 2 * 4 * 10 * 2 + 4 * 4 * 9
    assert useful_flops(shape.operations, [Example(3, (1,), (2,))], shared=True) == one + scored
    again = 2 * 144 * 3 + 4 * 4 * 6
    assert useful_flops(shape.operations, [Example(3, (1,), (2,))], shared=False) == one + scored + again


def test_matrix_parameters_are_those_of_the_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    make_model(TINY, tmp_path)
    layers = AutoModelForCausalLM.from_pretrained(tmp_path).model.layers
    assert Shape.of(TINY.config).matrices == sum(p.numel() for p in layers.parameters() if p.ndim == 2)


@pytest.mark.slow
def test_both_sides_are_measured_on_equal_work(tmp_path: Path) -> None:
    """The whole suite, tiny: that token ids, tokens of each step and losses agree is checked on the way."""
    output, figure = tmp_path / "found.csv", tmp_path / "found.svg"
    peers = ("trl-default", "trl-best")
    rows = run([Comparison("dpo", SHORT, TINY, peer) for peer in peers], tmp_path, threads=1, pairs=3, budget=256)
    write(rows, output)
    with output.open() as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == COLUMNS
    assert [row["peer"] for row in found] == list(peers)
    for row in found:
        ours, theirs = float(row["loss_value"]), float(row["peer_loss_value"])
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert abs(ours - np.log(2)) > 5e-4  # the weights have moved, so equal losses say something
        assert float(row["ratio_min"]) <= float(row["ratio_examples_per_s"]) <= float(row["ratio_max"])
        assert float(row["peak_memory_gb"]) >= float(row["baseline_memory_gb"]) > 0
        assert 0 < float(row["useful_share"]) < float(row["useful_share_unshared"])
    default, best = (row["peer_setting"] for row in found)
    assert default == "batch 2 x 1"
    assert best.endswith("gradient_checkpointing=False precompute_ref_log_probs=True")
    assert float(found[1]["peer_reference_seconds"]) > 0
    draw(output, figure)
    assert "dpo, short" in figure.read_text()


def test_unequal_losses_and_unequal_tokens_are_refused() -> None:
    check_equal("dpo", 1, 0.6931, 0.6934, 100, 100)
    for loss in ("sft", "dpo"):
        with pytest.raises(HalosError, match=r"step 1: .* different work"):
            check_equal(loss, 1, 0.693, 0.695, 100, 100)
    check_equal("kto", 1, 0.50, 0.51, 100, 100)  # defined otherwise
    with pytest.raises(HalosError, match="100 tokens, and TRL's batch 101"):
        check_equal("kto", 1, 0.5, 0.5, 100, 101)


def test_other_token_ids_are_refused() -> None:
    line = {"prompt_ids": [0, 4, 5], "response_ids": [[7, 1], [8, 1]]}
    equal = {"prompt_ids": [0, 4, 5], "chosen_ids": [7, 1], "rejected_ids": [8, 1]}
    check_ids([equal], [line])
    for name in equal:
        with pytest.raises(ValueError, match="token ids"):
            check_ids([{**equal, name: [3]}], [line])
    one = {"prompt_ids": [0, 4, 5], "response_ids": [[7, 1]]}
    check_ids([{"input_ids": [0, 4, 5, 7, 1], "labels": [-100, -100, -100, 7, 1]}], [one])
    with pytest.raises(ValueError, match="token ids"):
        check_ids([{"input_ids": [0, 4, 5, 7, 1], "labels": [-100, -100, 5, 7, 1]}], [one])


def test_the_whole_run_has_each_loss_profile_and_peer_on_the_small_model_and_a_few_on_the_large_one() -> None:
    names = {(c.model.name, c.loss, c.profile.name, c.peer) for c in everything()}
    peers = ("trl-default", "trl-best")
    assert {("llama", *rest) for rest in product(("sft", "dpo", "kto"), PROFILES, peers)} <= names
    assert {name[1:] for name in names if name[0] == "smollm2"} == {
        ("dpo", "hh", "trl-default"), ("dpo", "hh", "trl-best"), ("kto", "hh", "trl-default"),
        ("sft", "hh", "trl-default"),
    }  # fmt: skip
    assert {loss for _, loss, _, peer in names if peer == "trl-packing"} == {"sft"}


def test_loss_layers_agree_and_their_memory_is_compared(tmp_path: Path) -> None:
    output = tmp_path / "memory.csv"
    loss_memory.main(["--sizes", "4096", "16", "8192", "--output", str(output)])
    with output.open() as file:
        halos, full = csv.DictReader(file)
    assert (halos["layer"], full["layer"]) == ("halos", "full")
    assert float(halos["logps_mean"]) == pytest.approx(float(full["logps_mean"]), rel=1e-4)
    assert float(full["extra_gb"]) > 2 * 4096 * 8192 * 4 / 1e9  # logits, and as much again
    assert float(halos["ratio"]) > 1.5
