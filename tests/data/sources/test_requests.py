"""The source `requests` and its verifier."""

import re
from collections import Counter
from itertools import combinations

import pytest

from halos.data.constraints import KINDS, UNSEEN, names, parse
from halos.data.feedback import Feedback
from halos.data.paths import SPLITS
from halos.data.sources.requests import FORMS, SAID, requests, topics, verify
from halos.errors import HalosError
from halos.registry import SOURCES, VERIFIERS


@pytest.fixture(scope="module")
def records() -> dict[tuple[str, bool], list[Feedback]]:
    return {(split, unseen): list(requests(split, unseen=unseen)) for split in SPLITS for unseen in (False, True)}


def test_it_is_registered_as_a_source_and_a_verifier():
    assert SOURCES["requests"] is requests
    assert VERIFIERS["constraints"] is verify


def test_the_records_depend_on_the_arguments_alone(records):
    assert list(requests("test")) == records["test", False]
    assert list(requests("test", seed=1)) != records["test", False]
    few = list(requests("train", prompts=20))
    assert few == records["train", False][:20]


def test_the_splits_have_different_topics():
    assert all(not {*topics(a)} & {*topics(b)} for a, b in combinations(SPLITS, 2))
    every = [topic for split in SPLITS for topic in topics(split)]
    assert len(every) == len({*every}) > 200


def test_every_prompt_asks_about_a_topic_of_its_split_in_a_known_form(records):
    for (split, _), made in records.items():
        known = {form.format(x=topic) for form in FORMS for topic in topics(split)}
        assert {parse(record.prompt[-1]["content"])[0] for record in made} <= known


def test_every_prompt_is_read_back_to_constraints_that_write_the_same_prompt(records):
    for record in (record for made in records.values() for record in made):
        text = record.prompt[-1]["content"]
        request, constraints = parse(text)
        assert 1 <= len(constraints) <= 2
        rest = text.removeprefix(request).strip()
        for constraint in constraints:  # exactly one phrasing of each, one after the other, and nothing else
            asked = {phrasing.format(x=constraint.value) for phrasing in KINDS[constraint.name].phrasings}
            fitting = [phrasing for phrasing in asked if rest.startswith(phrasing)]
            assert len(fitting) == 1
            rest = rest.removeprefix(fitting[0]).strip()
        assert rest == ""


def test_all_constraints_of_every_prompt_can_be_met_together(records):
    for made in records.values():
        assert {verify(r.prompt, r.responses[0])["prompt_strict"] for r in made} == {1.0}
        assert {r.problem() for r in made} == {None}


def test_every_kind_occurs_and_two_kinds_never_do_unless_they_are_asked_for(records):
    for (_, unseen), made in records.items():
        kinds = Counter(c.name for r in made for c in parse(r.prompt[-1]["content"])[1])
        assert {*kinds} == {*names(unseen)}
        assert unseen == bool({*kinds} & {*UNSEEN})
        assert max(kinds.values()) < 2 * min(kinds.values()) + 5


def test_no_prompt_occurs_twice(records):
    ids = [record.prompt_id for made in records.values() for record in made]
    assert len(ids) == len({*ids})


def test_the_verifier_judges_any_response_to_a_prompt():
    prompt = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": "Explain baking bread to a beginner.\n\nUse at most 15 words. End with a question.",
        },
    ]
    assert verify(prompt, "Mix it. Ready?")["prompt_strict"] == 1
    half = verify(prompt, "Mix it.\n" + "word " * 20)
    assert half == {"prompt_strict": 0.0, "instruction_strict": 0.0, "prompt_loose": 0.0, "instruction_loose": 0.5}


def test_what_it_cannot_do_is_refused_in_one_sentence():
    with pytest.raises(HalosError, match="cannot judge 'What is the capital of France"):
        verify([{"role": "user", "content": "What is the capital of France?"}], "Paris")
    with pytest.raises(HalosError, match="no split 'dev'; there are train, validation, test"):
        list(requests("dev"))


def test_more_prompts_than_there_are_are_refused(monkeypatch):
    monkeypatch.setattr("halos.data.sources.requests.topics", lambda split: ("baking bread",))
    with pytest.raises(HalosError, match=r"the requests source has about 1[67]\d train prompts; ask for no more"):
        list(requests("train", unseen=True))


def test_no_sentence_that_it_says_has_a_comma_or_a_topic():
    assert not [s for s in SAID if re.search(r"[,{}]", s)]
