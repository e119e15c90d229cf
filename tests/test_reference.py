"""The reference cache: what it holds, and that it is used with nothing but what it was made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from halos.data.store import Store
from halos.errors import HalosError
from halos.models import load
from halos.reference import PARTS, Reference, expected_hashes, parts_for, reference
from halos.registry import LOSSES
from tests.conftest import World


def test_it_holds_the_parents_own_log_probabilities_of_every_sequence(world: World) -> None:
    store = Store(world.store)
    cached = Reference(world.reference(), expected_hashes(world.base, store))
    model = load(world.base / "model", "sdpa").eval()
    assert 0 < store.n_responses < len(store)
    rows = [0, 1, 17, store.n_responses - 1, store.n_responses, len(store) - 1]
    rows += np.random.default_rng(0).integers(0, len(store), 60).tolist()
    for row in rows:
        prompt, response = store.sequence(row)
        ids = torch.tensor(np.concatenate([prompt, response]), dtype=torch.long)
        with torch.no_grad():
            logps = model(ids[None]).logits[0].log_softmax(-1)
        expected = logps[len(prompt) - 1 : -1].gather(1, ids[len(prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(cached[row]), expected, rtol=1e-4, atol=1e-5)


def test_one_pass_covers_every_row_of_every_view_and_split(world: World) -> None:
    store = Store(world.store)
    cached = Reference(world.reference(), expected_hashes(world.base, store))
    for row in range(len(store)):
        values = cached[row]
        assert values.dtype == np.float32
        assert len(values) == store.lengths[row, 1]
        assert (values < 0).all()


def test_the_order_of_the_files_does_not_matter(world: World) -> None:
    store = Store(world.store)
    expected = expected_hashes(world.base, store)
    one, other = Reference(world.reference(), expected), Reference(world.reference()[::-1], expected)
    for row in (0, store.n_responses, len(store) - 1):
        assert one[row].tolist() == other[row].tolist()


def test_a_sequence_of_a_part_that_was_not_given_is_refused(world: World) -> None:
    store = Store(world.store)
    responses, mismatched = world.reference()
    expected = expected_hashes(world.base, store)
    for file, row in ((responses, store.n_responses), (mismatched, store.n_responses - 1), (responses, -1)):
        with pytest.raises(HalosError, match=f"sequence {row} is in no part"):
            Reference([file], expected)[row]


@pytest.mark.parametrize("names", [["weights"], ["store"], ["template"], ["weights", "template"]])
def test_a_file_made_from_something_else_is_refused_and_the_message_names_it(names: list[str], world: World) -> None:
    expected = expected_hashes(world.base, Store(world.store))
    changed = {name: "0" * 64 if name in names else value for name, value in expected.items()}
    with pytest.raises(HalosError, match=f"was made from other {' and '.join(names)} than this training uses"):
        Reference(world.reference(), changed)


def test_the_hashes_are_those_of_the_parents_manifest_and_the_store(world: World, tmp_path: Path) -> None:
    store = Store(world.store)
    expected = expected_hashes(world.base, store)
    assert expected["weights"] == json.loads((world.base / "manifest.json").read_text())["weights"]
    assert (expected["store"], expected["template"]) == (store.hash, store.meta["template"])
    assert len(set(expected.values())) == 3
    with pytest.raises(HalosError, match="the parent model is not finished"):
        expected_hashes(tmp_path, store)


def test_a_missing_file_says_how_to_make_it(world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="python -m halos reference"):
        Reference([tmp_path / "responses.safetensors"], {})


def test_the_parts_follow_from_a_losss_traits() -> None:
    assert parts_for(LOSSES["sft"]) == parts_for(LOSSES["simpo"]) == ()
    assert parts_for(LOSSES["dpo"]) == ("responses",)
    assert parts_for(LOSSES["kto"]) == PARTS


def test_the_values_do_not_depend_on_the_token_budget(world: World, tmp_path: Path) -> None:
    config = world.slice("runs/d/m/base/seed0")
    expected = expected_hashes(world.base, Store(world.store))
    file = tmp_path / "a" / "mismatched.safetensors"
    reference(config, world.base, world.store, "mismatched", file, 150)
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    one, other = Reference([file], expected), Reference(world.reference(), expected)
    for row in range(Store(world.store).n_responses, len(Store(world.store))):
        np.testing.assert_allclose(one[row], other[row], rtol=1e-4, atol=1e-5)


def test_a_store_without_mismatched_sequences_makes_an_empty_part(world: World, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder = tmp_path / "store"
    shutil.copytree(world.store, folder)
    n = Store(folder).n_responses
    pq.write_table(pq.read_table(folder / "sequences.parquet").slice(0, n), folder / "sequences.parquet")
    file = tmp_path / "mismatched.safetensors"
    reference(world.slice("runs/d/m/base/seed0"), world.base, folder, "mismatched", file, 2048)
    with pytest.raises(HalosError, match="is in no part"):
        Reference([file], {})[n]
