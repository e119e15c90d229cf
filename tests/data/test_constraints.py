"""Constraints: what meets each kind, in examples made by hand, and what is true of all of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halos.data.constraints import KINDS, UNSEEN, Constraint, decide, names, parse, written

REQUEST = "Explain baking bread to a beginner."

EXAMPLES: dict[tuple[str, str], tuple[list[str], list[str]]] = {
    ("sentences", "2"): (
        ["Mix flour and water. Bake it.", "Is it hard? No!", "It takes time, e.g. an hour. Wait.", "One line\nand two"],
        ["Mix it.", "Mix it. Wait. Bake it.", "", "Mix flour and water, then bake"],
    ),
    ("at_most", "15"): (
        ["Mix and bake.", "", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", "Well-known bread."],
        [
            "one two three four five six seven eight nine ten eleven twelve a b c d",
            " ".join(["bread"] * 16),
            "Mix flour, water, salt and yeast, wait for an hour, and then bake the loaf in the oven.",
            "a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p",
        ],
    ),
    ("at_least", "30"): (
        [" ".join(["bread"] * 30), " ".join(["bread"] * 31), "a-b " * 30, "it's\n" * 40],
        [" ".join(["bread"] * 29), "", "Mix and bake.", "- " * 30],
    ),
    ("lower_case", ""): (
        ["mix and bake.", "bread", "use 2 eggs!", "é à la mode"],
        ["Mix and bake.", "breaD", "MIX", "12"],
    ),
    ("upper_case", ""): (
        ["MIX AND BAKE.", "BREAD", "USE 2 EGGS!", "É"],
        ["Mix and bake.", "BREAd", "mix", "12"],
    ),
    ("include", "river"): (
        ["By the river.", "RIVER", "A river-bank, a river.", "**river**"],
        ["By the rivers.", "riverside", "By the sea.", ""],
    ),
    ("three_times", "step"): (
        ["step step step", "A step, a Step and a STEP.", "step. step! step?", "step\nstep\nstep\nstep"],
        ["step step", "steps steps steps", "", "step step stepping"],
    ),
    ("avoid", "the"): (
        ["Mix and bake.", "There they are.", "", "Bathe other theory."],
        ["The bread.", "bake the loaf", "THE", "In (the) oven"],
    ),
    ("begin", "Here we go"): (
        ["Here we go. Mix it.", '"Here we go", he said.', "**Here we go!**", "here we go"],
        ["Mix it. Here we go.", "Here, we go.", "So here we go.", ""],
    ),
    ("end", "Good luck"): (
        ["Mix it. Good luck!", "Good luck", 'Bake it. "Good luck."', "**good luck**"],
        ["Good luck with it.", "Mix it.", "", "Good, luck"],
    ),
    ("no_commas", ""): (
        ["Mix and bake.", "bread", "a; b", "one\ntwo"],
        ["Mix, bake.", ",", "Well, no", "1,000"],
    ),
    ("bullets", "2"): (
        ["- a\n- b", "Do this:\n* a\n* b", "• a\n• b\nDone.", "  - a\n\n  - b"],
        ["- a", "- a\n- b\n- c", "1. a\n2. b", "a - b - c"],
    ),
    ("quotation", ""): (
        ['"Mix it."', "“Mix it.”", '  "Mix\nit"\n', '"a b c"'],
        ["Mix it.", '"Mix it.', '"Mix" and "bake"', '""'],
    ),
    ("repeat", ""): (
        [f"{REQUEST} Mix it.", f"{REQUEST.lower()}\nmix it", f'"{REQUEST}" Mix it.', f"**{REQUEST}**\n\nMix it."],
        ["Mix it.", REQUEST, f"You asked: {REQUEST} Mix it.", "Explain baking to a beginner. Mix it."],
    ),
    ("paragraphs", "2"): (
        ["a\n\nb", "a\nb\n\nc", "a\n\n\n\nb\n", "\n\na\n \nb"],
        ["a", "a\nb", "a\n\nb\n\nc", ""],
    ),
    ("title", ""): (
        ["<<Bread>> Mix it.", "Mix it.\n<<On bread>>", "<< a >>", "**<<Bread>>**"],
        ["<Bread> Mix it.", "<<>>", "<<Bread\n>>", "Bread"],
    ),
    ("postscript", ""): (
        ["Mix it.\nP.S. Wait.", "Mix it.\n\nPS: wait", "Mix it.\n**P. S.** Wait.", "Mix it.\np.s. wait"],
        ["Mix it. P.S. Wait.", "Mix it.\nP.S.", "P.S. Wait.\nMix it.", "Mix it.\nPsst. Wait."],
    ),
    ("question", ""): (
        ["Mix it. Is it done?", "Why?", '"Is it done?"', "Mix it.\n**Done?**"],
        ["Is it done? Yes.", "Mix it.", "", "Is it done?!"],
    ),
    ("numbered", "2"): (
        ["1. a\n2. b", "Do this:\n1) a\n2) b", " 1. a\n\n 2. b\nDone.", "1. a b\n2. c d"],
        ["1. a", "1. a\n2. b\n3. c", "- a\n- b", "1. a 2. b"],
    ),
    ("one_line", ""): (
        ["Mix it.", "\nMix it. Bake it.\n", "a, b, c", "1. a 2. b"],
        ["Mix it.\nBake it.", "a\n\nb", "- a\n- b", "1. a\n2. b\n"],
    ),
}  # fmt: skip
"""(kind, value) -> responses to REQUEST that meet it, and responses that do not."""

CASES = [
    pytest.param(kind, value, text, verdict, id=f"{kind} {verdict} {text[:20]!r}")
    for (kind, value), both in EXAMPLES.items()
    for verdict, texts in zip((True, False), both, strict=True)
    for text in texts
]


@pytest.mark.parametrize(("kind", "value", "text", "verdict"), CASES)
def test_a_kind_decides_as_a_reader_would(kind, value, text, verdict):
    assert Constraint(kind, value).met(text, REQUEST) is verdict


def test_each_kind_has_four_examples_of_either_sort():
    assert {kind for kind, _ in EXAMPLES} == set(KINDS)
    assert {len({*texts}) for both in EXAMPLES.values() for texts in both} == {4}
    assert all(value in KINDS[kind].values for kind, value in EXAMPLES)


def test_there_are_fifteen_kinds_and_more_and_two_that_are_kept_apart():
    assert len(names(unseen=False)) >= 15
    assert names(unseen=True) == UNSEEN
    assert not {*names(unseen=True)} & {*names(unseen=False)}


EVERY = [
    (Constraint(name, value), phrasing.format(x=value))
    for name, kind in KINDS.items()
    for value in kind.values
    for phrasing in kind.phrasings
]


def test_every_constraint_in_every_phrasing_is_read_back():
    assert [parse(f"{REQUEST} {text}") for _, text in EVERY] == [(REQUEST, [constraint]) for constraint, _ in EVERY]


def test_a_text_without_a_constraint_is_a_request_alone():
    assert parse(f" {REQUEST}\nPlease.") == (f"{REQUEST}\nPlease.", [])


def test_what_a_loose_decision_forgives():
    constraints = [Constraint("begin", "Here we go"), Constraint("no_commas")]
    strict = {"prompt_strict": 1.0, "instruction_strict": 1.0, "prompt_loose": 1.0, "instruction_loose": 1.0}
    assert decide("Here we go. Mix it.", REQUEST, constraints) == strict
    assert decide("Sure!\nHere we go. Mix it.", REQUEST, constraints) == {
        **strict, "prompt_strict": 0.0, "instruction_strict": 0.5
    }  # fmt: skip
    assert decide("Here we go, so, mix it.", REQUEST, constraints) == {
        "prompt_strict": 0.0, "instruction_strict": 0.5, "prompt_loose": 0.0, "instruction_loose": 0.5
    }  # fmt: skip
    stars = decide("*Well* mixed.\n*", REQUEST, [Constraint("quotation"), Constraint("one_line")])
    assert (stars["instruction_strict"], stars["instruction_loose"]) == (0.0, 0.5)


@pytest.mark.parametrize("text", ["", " \n", "...", "**"])
def test_a_response_without_a_word_meets_nothing(text):
    assert set(decide(text, REQUEST, [Constraint("no_commas"), Constraint("avoid", "the")]).values()) == {0.0}


def test_constraints_that_exclude_each_other_have_no_response():
    said = ["Begin with small steps.", "Take your time."]
    assert written(REQUEST, [Constraint("lower_case"), Constraint("upper_case")], said) is None
    assert written(REQUEST, [Constraint("include", "river"), Constraint("lower_case")], said) == (
        "it may begin with one river."
    )


TEXTS = st.text() | st.lists(
    st.sampled_from(["river", "Here we go", "Good luck", "step ", "the ", "a, ", ". ", "? ", "\n", "\n\n", "- ", "* ",
                     "1. ", '"', "**", "<<t>>", "\nP.S. x", REQUEST, "A ", "é"])
).map("".join)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(text=TEXTS, chosen=st.lists(st.sampled_from([constraint for constraint, _ in EVERY]), min_size=1, max_size=3))
def test_what_is_met_strictly_is_met_loosely_and_all_is_no_more_than_a_share(text, chosen):
    scores = decide(text, REQUEST, chosen)
    assert all(0 <= score <= 1 for score in scores.values())
    assert scores["prompt_strict"] <= scores["prompt_loose"]
    assert scores["instruction_strict"] <= scores["instruction_loose"]
    assert scores["prompt_strict"] <= scores["instruction_strict"]
    assert scores["prompt_loose"] <= scores["instruction_loose"]
