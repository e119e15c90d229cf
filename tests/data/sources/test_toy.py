import os
import subprocess
import sys
from itertools import product
from random import Random
from statistics import mean

import pytest

from halos.data.feedback import Feedback
from halos.data.paths import SPLITS
from halos.data.sources.toy import (
    FAMILIES,
    LONG_WORDS,
    NAMES,
    answer,
    questions,
    toy,
    verify,
)  # fmt: skip
from halos.errors import HalosError
from halos.registry import SOURCES, VERIFIERS

ZERO = {"correct": 0.0, "concise": 0.0, "polite": 0.0}
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def train() -> list[Feedback]:
    return list(toy("train"))


@pytest.fixture(scope="module")
def test() -> list[Feedback]:
    return list(toy("test"))


@pytest.fixture(scope="module")
def validation() -> list[Feedback]:
    return list(toy("validation"))


def test_it_is_registered_as_a_source_and_a_verifier():
    assert SOURCES["toy"] is toy
    assert VERIFIERS["toy"] is verify


def test_the_records_depend_on_the_arguments_alone(train):
    assert list(toy("train")) == train
    assert list(toy("train", seed=1)) != train
    code = (
        "import hashlib; from halos.data.sources.toy import toy; "
        "print(hashlib.sha256(repr([list(toy(s)) for s in ('train', 'validation', 'test')]).encode()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != ""


@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_held_out_question_occurs_in_train(split):
    everything = sum(len(questions(name, "train")) for name in FAMILIES)
    seen = {turn["content"] for r in toy("train", prompts=everything) for turn in r.prompt}
    for record in toy(split):
        if record.prompt[-1]["content"] in seen:  # "What is my name?": the turns that tell the name make the question
            assert record.prompt[-3]["content"].rstrip(".").split()[-1] in NAMES


def test_no_question_is_in_two_splits():
    for name in FAMILIES:
        train, validation, test = ([q.prompt for q in questions(name, split)] for split in SPLITS)
        assert not [prompt for prompt in train if prompt in validation or prompt in test]
        assert not [prompt for prompt in validation if prompt in test]


def test_prompts_are_all_different(train, validation, test):
    ids = [r.prompt_id for r in train + validation + test]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_train_split_knows_every_subject_that_is_held_out(name):
    known = [{q.subject for q in questions(name, split)} for split in SPLITS]
    assert known == [set(FAMILIES[name].facts)] * 3


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("quality", list(product((True, False), repeat=3)))
def test_the_verifier_sees_the_quality_that_a_response_was_written_with(name, quality):
    rng = Random(0)
    for question in questions(name, "test") + questions(name, "train")[::5] + questions(name, "validation")[::5]:
        response = answer(question, quality, rng)
        assert tuple(verify(question.prompt, response).values()) == quality, response


def test_stored_scores_are_the_verifiers(train, validation, test):
    for record in train + validation + test:
        assert record.scores == [pytest.approx(mean(verify(record.prompt, r).values())) for r in record.responses]


def test_scores_by_some_criteria_are_of_the_same_responses(train, validation):
    records = list(toy("train", criteria=["correct", "polite"]))
    assert [(r.prompt, r.responses, r.target) for r in records] == [(r.prompt, r.responses, r.target) for r in train]
    for record in records:
        verdicts = [verify(record.prompt, r) for r in record.responses]
        assert record.scores == [(v["correct"] + v["polite"]) / 2 for v in verdicts]
        assert all(record.scores[w] > record.scores[lo] for w, lo in record.pairs)
    assert all(r.pairs for r in toy("validation", criteria=["correct", "polite"]))


@pytest.mark.parametrize("criteria", [[], ["correct", "short"]])
def test_criteria_that_it_does_not_have_are_refused(criteria):
    with pytest.raises(HalosError, match="choose from correct, concise, polite"):
        list(toy("train", criteria=criteria))


def test_records_are_sound(train, validation, test):
    assert len(train) == 2000
    assert len(validation) == len(test) == 240
    for record in train + validation + test:
        assert record.problem() is None
        assert len(set(record.responses)) == len(record.responses) <= 5
        assert all(record.scores[w] > record.scores[lo] for w, lo in record.pairs)
    for record in validation + test:
        assert record.target is not None
        assert record.pairs


def test_each_kind_of_record_occurs(train, test):
    def words(texts):
        return sum(len(text.split()) for text in texts)

    assert sum(len(set(r.scores)) < len(r.scores) for r in train) > 100  # ties
    unpaired = [r for r in train if r.target is None]
    assert 0.03 < len(unpaired) / len(train) < 0.1
    assert all(len(r.responses) == 1 and not r.pairs and r.desirable[0] is not None for r in unpaired)
    assert {label for r in train for label in r.desirable} == {True, False, None}
    assert sum(any(t["role"] == "assistant" for t in r.prompt) for r in train) > 100
    assert sum(r.prompt[0]["role"] == "system" for r in train) > 10
    for split, least in ((train, 5), (test, 1)):
        assert sum(words(t["content"] for t in r.prompt) > LONG_WORDS for r in split) >= least
    assert sum(words([text]) > LONG_WORDS for r in train for text in r.responses) >= 5


def test_the_target_is_a_typical_response_not_the_best(train, test):
    for split in (train, test):
        targets = [verify(r.prompt, r.responses[r.target]) for r in split if r.target is not None]
        assert 0.65 < mean(t["correct"] for t in targets) < 0.8
        assert 0.5 < mean(mean(t.values()) for t in targets) < 0.63
        assert mean(max(r.scores) for r in split) > 0.8


@pytest.mark.parametrize(
    "text",
    ["", "   ", "xq zz! ##", "Happy to help.", "Happy to help. " * 10, "I do not know.", "?", "\n", "1"],
)
def test_noise_and_empty_courtesy_score_zero(text, test):
    for record in test[:50]:
        assert verify(record.prompt, text) == ZERO


@pytest.mark.parametrize("name", FAMILIES)
def test_naming_several_answers_scores_zero(name):
    question = questions(name, "test")[0]
    family = FAMILIES[name]
    others = family.others(question.subject)
    assert verify(question.prompt, f"Happy to help. It is {' or '.join(family.candidates)}.") == ZERO
    assert verify(question.prompt, f"Sure! It is {family.facts[question.subject]}, not {others[0]}.") == ZERO


def test_repeated_courtesy_does_not_pay():
    assert verify(CAPITAL, "Happy to help. The capital is Paris.") == {"correct": 1.0, "concise": 1.0, "polite": 1.0}
    assert verify(CAPITAL, "Happy to help. " * 10 + "The capital is Paris.") == {**ZERO, "correct": 1.0}


@pytest.mark.parametrize(
    "text",
    ["Good question! Paris Paris Paris.", "happy to help. The capital is Paris.", "Sure! The capital is Paris"],
)
def test_what_does_not_read_as_sentences_is_neither_concise_nor_polite(text):
    assert verify(CAPITAL, text) == {**ZERO, "correct": 1.0}


def test_a_rude_response_is_not_polite_for_a_courtesy():
    assert verify(CAPITAL, "Of course, stupid. It is Paris.") == {"correct": 1.0, "concise": 1.0, "polite": 0.0}


@pytest.mark.parametrize(
    ("asks", "returned"),
    [
        ("", ""),
        ("Please help me. ", ""),
        ("Hello! ", "Hello! "),
        ("Hi there. ", "Hi! "),
        ("Good morning. ", "Good morning! "),
    ],
)
def test_a_greeting_is_returned_in_kind_and_none_is_given_unasked(asks, returned):
    prompt = [{"role": "user", "content": f"{asks}What is the capital of France?"}]
    for greeting in ("", "Hello! ", "Hi! ", "Good morning! "):
        polite = verify(prompt, f"{greeting}The capital is Paris. I hope that helps.")["polite"]
        assert polite == (greeting == returned)


def test_the_answer_must_be_a_word_of_its_own():
    assert verify(CAPITAL, "The capital is Parisian.") == ZERO


def test_the_last_name_given_counts():
    turns = ["I am Ben.", "Hello, Ben.", "Please call me Leo.", "Hello, Leo.", "What is my name?"]
    prompt = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    assert verify(prompt, "Your name is Leo.")["correct"] == 1.0
    assert verify(prompt, "Your name is Ben.")["correct"] == 0.0


@pytest.mark.parametrize("text", ["What is the capital of Atlantis?", "Write a poem.", "What is my name?"])
def test_a_prompt_that_is_not_of_the_toy_source_is_refused(text):
    with pytest.raises(HalosError, match="toy verifier cannot judge"):
        verify([{"role": "user", "content": text}], "Paris.")


def test_an_unknown_split_and_too_many_prompts_are_refused():
    with pytest.raises(HalosError, match="no split 'dev'"):
        next(toy("dev"))
    with pytest.raises(HalosError, match="no more than that"):
        next(toy("test", test_prompts=100_000))
