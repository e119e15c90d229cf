"""Every causal type of transformers trains as plain transformers computes, or is refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.conftest import World
from tests.zoo.architectures import IMPOSSIBLE
from tests.zoo.table import PAGE, TYPES, outcomes_of, read, row

ALWAYS = (
    "llama", "qwen3", "gemma3", "gemma3_text", "gpt2", "qwen3_moe", "gpt_oss", "deepseek_v3", "mamba", "jamba", "rwkv",
    "phi3-longrope", "opt-projected", "bart",
)  # fmt: skip
"""Dense and sparse, recurrent and hybrid, with windows, with learned positions, with a tower for pictures, with rotary
positions that depend on the length, and with embeddings of another width."""
TRAINED = ("reference", "sft", "dpo", "kto")
"""What every type can do that `model` does not refuse."""


def check(name: str, zoo: World, folder: Path) -> None:
    """Assert that a type is right or refused, and that the page says so."""
    outcomes = outcomes_of(name, zoo, folder / "trial")
    for column, outcome in outcomes.items():
        if column == "rows":
            continue
        refused = outcome.startswith("refused: ") and "\n" not in outcome and len(outcome) < 400
        may_be_refused = column not in TRAINED
        assert outcome.startswith("yes") or (refused and may_be_refused), f"{column}: {outcome}"
    assert read(PAGE.read_text())[name] == row(outcomes), "`python -m tests.zoo.table` writes the page anew"


@pytest.mark.parametrize("name", ALWAYS)
def test_a_family_is_as_plain_transformers_or_refused(name: str, zoo: World, tmp_path: Path) -> None:
    check(name, zoo, tmp_path)


@pytest.mark.zoo
@pytest.mark.parametrize("name", [name for name in TYPES if name not in ALWAYS])
def test_a_type_is_as_plain_transformers_or_refused(name: str, zoo: World, tmp_path: Path) -> None:
    check(name, zoo, tmp_path)


def test_the_page_has_every_causal_type() -> None:
    """Those that the recipe cannot make are listed with the reason."""
    page = PAGE.read_text()
    assert set(read(page)) == set(TYPES)
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(TYPES) == set(IMPOSSIBLE)
    for name, reason in IMPOSSIBLE.items():
        assert f"`{name}`: {reason}" in page
