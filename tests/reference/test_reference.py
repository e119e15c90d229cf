"""The reference cache: what it holds, and that it is used with nothing but what it was made from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open

from halos.errors import HalosError
from halos.files import hash_weights
from halos.forward.microbatch import Microbatch
from halos.manifest import Manifest
from halos.models.load import freeze, load
from halos.models.policy import begin, save
from halos.reference.cache import PARTS, SCORES, Reference, expected_hashes, parts_for, read_scores
from halos.reference.compute import reference
from halos.registry import LOSSES
from halos.settings import dump, read_slice
from halos.tokens.store import Store
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
    assert expected["weights"] == Manifest.read(world.base / "manifest.json").weights
    assert (expected["store"], expected["template"]) == (store.hash, store.meta.template)
    assert len(set(expected.values())) == 3
    with pytest.raises(HalosError, match=f"there is no {tmp_path}/manifest.json; run `snakemake "):
        expected_hashes(tmp_path, store)


def test_a_missing_file_says_how_to_make_it(world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="python -m halos reference"):
        Reference([tmp_path / "responses.safetensors"], {})


@pytest.mark.parametrize("name", list(LOSSES))
def test_the_parts_follow_from_a_losss_traits(name: str) -> None:
    loss = LOSSES[name]()
    parts = parts_for(loss)
    assert parts == PARTS[: len(parts)]
    assert ("responses" in parts) == loss.needs_reference
    assert ("mismatched" in parts) == (loss.needs_reference and "mismatched" in loss.prepass)
    assert parts_for(loss, live=True) == ()


def test_the_parts_of_some_losses() -> None:
    assert parts_for(LOSSES["sft"]()) == parts_for(LOSSES["simpo"]()) == parts_for(LOSSES["bradley_terry"]()) == ()
    assert parts_for(LOSSES["dpo"]()) == parts_for(LOSSES["grpo"]()) == parts_for(LOSSES["ppo"]()) == ("responses",)
    assert parts_for(LOSSES["kto"]()) == PARTS


def test_a_policy_without_its_adapters_is_its_reference_however_long_it_was_trained(
    world: World, tmp_path: Path
) -> None:
    from halos.train.inputs import Inputs
    from halos.train.trainer import Trainer

    config = world.slice("runs/d/m/lora/seed1", lr=0.01, warmup=0)
    trainer = Trainer(Inputs.open(config, world.base, world.store, world.reference()[:1]), tmp_path / "run", 2048)
    for step in range(3):
        trainer.step(step)
    trainer.policy.eval()
    indices = np.arange(12)
    for batch in trainer.examples.microbatches(indices, ("chosen", "rejected"), 2048):
        batch = batch.to(trainer.accelerator.device)
        with torch.no_grad():
            adapted = trainer.policy(batch)["logps"]
            with trainer.policy.model.disable_adapter():
                bare = trainer.policy(batch)["logps"]
        torch.testing.assert_close(bare, batch.reference, rtol=1e-4, atol=1e-5)
        assert (adapted - bare).abs().max() > 0.1


# ---- scores ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rewarder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reward model that is not trained."""
    folder = tmp_path_factory.mktemp("rm")
    torch.manual_seed(3)
    model, tokenizer, _ = begin(world.base / "model", "sdpa", LOSSES["bradley_terry"](), None)
    save(model, model.state_dict(), world.base / "model", folder / "model", tokenizer)
    Manifest(config={}, weights=hash_weights(folder / "model"), files={}).write(folder / "manifest.json")
    return folder


def scores_of(world: World, rewarder: Path, file: Path, budget: int = 2048) -> Path:
    reference(world.slice("runs/d/m/bradley_terry/seed1"), rewarder, world.store, SCORES, file, budget)
    return file


def test_a_score_for_each_response_is_that_of_the_sequence_alone(world: World, rewarder: Path, tmp_path: Path) -> None:
    store = Store(world.store)
    found = read_scores(scores_of(world, rewarder, tmp_path / "scores.safetensors"), store)
    assert found.dtype == np.float32
    assert found.shape == (store.n_responses,)
    model = load(rewarder / "model", "sdpa", score=True).eval()
    for row in [0, 1, store.n_responses - 1, *np.random.default_rng(0).integers(0, store.n_responses, 30).tolist()]:
        ids = torch.tensor(np.concatenate(store.sequence(row)), dtype=torch.long)
        with torch.no_grad():
            assert found[row] == pytest.approx(float(model(ids[None]).logits[0, 0]), rel=1e-4, abs=1e-6)
    other = read_scores(scores_of(world, rewarder, tmp_path / "small.safetensors", budget=150), store)
    np.testing.assert_allclose(found, other, rtol=1e-4, atol=1e-6)


def test_a_policy_has_no_scores_and_a_reward_model_no_log_probabilities(
    world: World, rewarder: Path, tmp_path: Path
) -> None:
    with pytest.raises(HalosError, match=r"holds LlamaForCausalLM, and a reward model is"):
        scores_of(world, world.base, tmp_path / "scores.safetensors")
    with pytest.raises(HalosError, match=r"^the model in \S+ is a reward model"):
        reference(world.slice("runs/d/m/bradley_terry/seed1"), rewarder, world.store, "responses",
                  tmp_path / "responses.safetensors", 2048)  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_scores_of_another_store_or_what_are_no_scores_are_refused(
    world: World, rewarder: Path, tmp_path: Path
) -> None:
    store = Store(world.store)
    with pytest.raises(HalosError, match="was made from other part than"):
        read_scores(world.reference()[0], store)
    with pytest.raises(HalosError, match="there is no"):
        read_scores(tmp_path / "scores.safetensors", store)
    file = scores_of(world, rewarder, tmp_path / "scores.safetensors")
    store.meta = store.meta.model_copy(update={"hash": "0" * 64})
    with pytest.raises(HalosError, match="was made from other store than"):
        read_scores(file, store)


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


# ---- a pass that is stopped --------------------------------------------------------------------------------------


def content(file: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """All that a file holds, to the last bit; safetensors writes the metadata in any order."""
    with safe_open(file, framework="np") as opened:
        return opened.metadata(), {name: opened.get_tensor(name).tobytes() for name in opened.keys()}  # noqa: SIM118


class Killed(BaseException):
    """What ends a process from outside."""


class Pass:
    """Passes over a store, whose forward passes are counted, with windows of 100 sequences.

    Attributes:
        calls: forward passes of the last run, those of a trial left out.
        after: how many there had been when each window was written.
        limit: the forward pass that kills the run, or None.
        changes: settings of the stage in the config.
    """

    def __init__(self, world: World, parent: Path, part: str, attention: str, patch: pytest.MonkeyPatch) -> None:
        from halos.forward.networks import ResponseLogps, SequenceScores
        from halos.reference import compute as module

        self.world, self.parent, self.part, self.attention, self.precision = world, parent, part, attention, "fp32"
        self.calls, self.limit, self.after = 0, -1, list[int]()
        self.changes: dict[str, Any] = {}
        patch.setattr(module, "WINDOW", 100)
        kind = SequenceScores if part == SCORES else ResponseLogps
        forward, add = kind.forward, module.Done.add

        def counted(network: Any, batch: Microbatch) -> dict[str, torch.Tensor]:
            if batch.tokens > 1:
                if self.calls == self.limit:
                    raise Killed
                self.calls += 1
            found: dict[str, torch.Tensor] = forward(network, batch)
            return found

        def added(done: Any, values: list[np.ndarray]) -> None:
            add(done, values)
            self.after.append(self.calls)

        patch.setattr(kind, "forward", counted)
        patch.setattr(module.Done, "add", added)

    def run(self, output: Path, killed_at: int | None = None) -> Path:
        settings = read_slice(self.world.slice("runs/d/m/bradley_terry/seed1", **self.changes))
        config = output.parent.with_name("config.yaml")
        config.write_text(dump({**settings, "attention": self.attention, "precision": self.precision}))
        self.calls, self.limit, self.after = 0, -1 if killed_at is None else killed_at, []
        file = output / "out.safetensors"
        if killed_at is None:
            reference(config, self.parent, self.world.store, self.part, file, 400)
            assert [p.name for p in output.iterdir()] == [file.name]
            return file
        with pytest.raises(Killed):
            reference(config, self.parent, self.world.store, self.part, file, 400)
        assert not file.exists()
        return file.with_name(f".{file.name}.partial")


@pytest.mark.parametrize(
    ("part", "attention"),
    [
        ("responses", "sdpa"),
        ("mismatched", "sdpa"),
        ("both", "sdpa"),
        ("responses", "eager"),
        (SCORES, "sdpa"),
        (SCORES, "eager"),
    ],
)
def test_a_pass_that_was_killed_goes_on_after_its_last_whole_window_and_makes_the_same_file(
    part: str, attention: str, world: World, rewarder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = Pass(world, rewarder if part == SCORES else world.base, part, attention, monkeypatch)
    expected = content(passing.run(tmp_path / "whole"))
    every, total = list(passing.after), passing.calls
    assert len(every) >= 4
    assert 0 < every[0] < every[1] < every[2] < every[3] <= total
    for k, (window, cut) in enumerate([(3, 0), (3, -3), (2, 5), (1, 0), (0, 0)]):
        partial = passing.run(tmp_path / str(k), killed_at=every[window] + 1)
        whole = partial.read_bytes()
        partial.write_bytes(whole[:cut] if cut < 0 else whole + b"\0" * cut)  # a window that was cut off in writing
        found = content(passing.run(tmp_path / str(k)))
        assert passing.calls == total - every[window - (cut < 0)]
        assert found == expected


@pytest.mark.parametrize("change", ["weights", "attention", "precision", "label"])
def test_a_pass_of_something_else_is_begun_anew(
    change: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = Pass(world, world.base, "responses", "sdpa", monkeypatch)
    partial = passing.run(tmp_path / "run", killed_at=20)
    assert partial.stat().st_size > 0
    partial.write_bytes(b"\0" * partial.stat().st_size)  # none of it may be seen again
    if change == "label":
        partial.with_name(f"{partial.name}.json").unlink()
    elif change == "weights":
        passing.parent = tmp_path / "parent"
        shutil.copytree(world.base, passing.parent)
        manifest = Manifest.read(world.base / "manifest.json")
        manifest.model_copy(update={"weights": "0" * 64}).write(passing.parent / "manifest.json")
    elif change == "attention":
        passing.attention = "eager"
    else:
        passing.precision = "bf16"
        AcceleratorState._reset_state(reset_partial_state=True)
    try:
        file = passing.run(tmp_path / "run")
        assert passing.after[0] > 0
        assert len(passing.after) == -(-Store(world.store).n_responses // 100)
        values = Reference([file], {})
        assert all((values[row] < 0).all() for row in range(Store(world.store).n_responses))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_a_pass_goes_on_when_only_settings_of_the_training_changed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = Pass(world, world.base, "responses", "sdpa", monkeypatch)
    expected = content(passing.run(tmp_path / "whole"))
    windows = len(passing.after)
    passing.run(tmp_path / "run", killed_at=passing.after[1])
    passing.changes = {"lr": 0.5}
    assert content(passing.run(tmp_path / "run")) == expected
    assert len(passing.after) == windows - 2


def test_a_config_without_attention_or_precision_is_one_sentence(world: World, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    for missing in ("attention", "precision"):
        settings = read_slice(world.slice("runs/d/m/base/seed0"))
        config.write_text(dump({k: v for k, v in settings.items() if k != missing}))
        with pytest.raises(HalosError, match=rf"config\.yaml: {missing}: Field required; write it again"):
            reference(config, world.base, world.store, "responses", tmp_path / "responses.safetensors", 2048)


def test_the_cache_is_imported_without_torch() -> None:
    code = "import sys, halos.reference.cache; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_parent_that_cannot_be_packed_says_so_and_gives_the_same_values(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump({**read_slice(world.slice("runs/d/m/base/seed0")), "attention": "eager"}))
    file = tmp_path / "responses.safetensors"
    reference(config, world.base, world.store, "responses", file, 2048)
    said = "packing is off: attention `eager` does not support packed rows"
    assert said in capsys.readouterr().err
    one, other = Reference([file], {}), Reference(world.reference()[:1], {})
    for row in range(Store(world.store).n_responses):
        np.testing.assert_allclose(one[row], other[row], rtol=1e-4, atol=1e-5)


def test_in_bf16_linear_weights_take_half_the_memory_and_no_value_changes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast would round float32 weights in the same way."""
    config = tmp_path / "config.yaml"
    config.write_text(dump({**read_slice(world.slice("runs/d/m/base/seed0")), "precision": "bf16"}))
    files, types = [tmp_path / f"{name}.safetensors" for name in ("frozen", "not")], []

    def unfrozen(network: torch.nn.Module, precision: str) -> None:
        types.append({p.dtype for p in network.parameters()})

    def frozen(network: torch.nn.Module, precision: str) -> None:
        freeze(network, precision)
        types.append({p.dtype for p in network.parameters()})
        assert not any(p.requires_grad for p in network.parameters())

    for how, file in zip((frozen, unfrozen), files, strict=True):
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr("halos.reference.compute.freeze", how)
        try:
            reference(config, world.base, world.store, "responses", file, 2048)
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
    assert types == [{torch.float32, torch.bfloat16}, {torch.float32}]
    assert files[0].read_bytes() == files[1].read_bytes()
