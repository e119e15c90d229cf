"""Base models, LoRA, and what a saved model's folder holds."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from halos.distributed.accelerator import accelerator_for
from halos.errors import HalosError
from halos.files import hash_each, hash_weights
from halos.forward.networks import SequenceScores
from halos.forward.packable import enable_packing
from halos.manifest import Manifest
from halos.models.base import make
from halos.models.load import load
from halos.models.policy import begin, save, with_lora
from halos.registry import LOSSES
from halos.seeds import derive
from halos.settings import dump, read_slice
from halos.study import catalogue as C
from halos.study.slices import config_slice
from halos.tokens.chat import TEMPLATES
from halos.tokens.store import Store
from halos.tokens.template import Template
from halos.train.batches import Examples
from halos.train.checkpoints import fingerprint
from halos.views import VIEWS
from tests.conftest import CATALOGUE, World
from tests.forward.test_layout import ids_of
from tests.train.test_control_tokens import CONVERSATIONS, child_of, templated

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}
CSFT, REWARD, DPO = (LOSSES[name]() for name in ("csft", "bradley_terry", "dpo"))
ROLES = ("chosen", "rejected")


def slice_of(tmp_path: Path, **settings: Any) -> Path:
    """Write the config.yaml of the model `x`, as the catalogue would."""
    config = C.load({**CATALOGUE, "models": {**CATALOGUE["models"], "x": settings}})
    path = tmp_path / "config.yaml"
    path.write_text(dump(config_slice(config, "models/x")))
    return path


def made(tmp_path: Path, feedback: list[Path], **settings: Any) -> Path:
    """Make a model from an entry; returns its folder."""
    make(slice_of(tmp_path, **settings), tmp_path / "x", feedback)
    return tmp_path / "x"


def test_an_architecture_has_the_same_weights_for_the_same_seed_only(world: World, tmp_path: Path) -> None:
    feedback = [world.results / "data/d/train.parquet"]
    entry = CATALOGUE["models"]["m"]
    hashes = []
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        hashes.append(hash_weights(made(tmp_path / name, feedback, **entry, seed=seed) / "model"))
    assert hashes[0] == hash_weights(world.base / "model") != hashes[1]


def test_random_weights_are_drawn_from_a_seed_of_their_own(world: World) -> None:
    made = AutoModelForCausalLM.from_pretrained(world.base / "model")
    torch.manual_seed(derive(0, "weights"))
    expected = AutoModelForCausalLM.from_config(made.config, dtype=torch.float32).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in made.state_dict().items())


def test_the_tokenizer_gives_every_text_back(world: World) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.base / "model")
    for text in ("The answer is 4.", "  indented\n\n\tcode  ", "Grüße, 世界 🙂", "a\u2028b\u0085c\r\n"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert len(tokenizer) <= 512


def test_generation_ends_at_the_end_of_a_turn(world: World) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.base / "model")
    generation = GenerationConfig.from_pretrained(world.base / "model")
    assert generation.eos_token_id == [tokenizer.convert_tokens_to_ids("<|end|>")]
    assert generation.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.pad_token_id not in generation.eos_token_id


def test_the_named_template_is_saved_with_the_model(world: World) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.base / "model")
    assert tokenizer.chat_template == (TEMPLATES / "turns.jinja").read_text()


def test_the_manifest_tells_the_weights_and_the_slice_that_made_them(world: World) -> None:
    manifest = Manifest.read(world.base / "manifest.json")
    assert manifest.weights == hash_weights(world.base / "model")
    assert manifest.files == hash_each(world.base / "model")
    assert manifest.config == read_slice(world.base / "config.yaml")
    assert manifest.revision is None


def test_a_config_of_something_else_is_one_sentence(world: World, tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=r"^\S+config\.yaml: \S+: .*; write it again with `python -m halos config"):
        make(world.slice("runs/d/m/base/seed0"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_base_models_and_conversion_are_imported_without_torch() -> None:
    code = "import sys, halos.models.base, halos.models.gguf, halos.models.load; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_local_models_weights_are_linked_and_its_own_tokenizer_kept(world: World, tmp_path: Path) -> None:
    origin = world.base / "model"
    model = made(tmp_path, [], path=str(origin)) / "model"
    [weights] = model.glob("*.safetensors")
    assert weights.is_symlink()
    assert weights.resolve() == (origin / "model.safetensors").resolve()
    assert AutoTokenizer.from_pretrained(model).chat_template == AutoTokenizer.from_pretrained(origin).chat_template
    ids = torch.arange(9)[None]
    assert torch.equal(load(model, "sdpa")(ids).logits, load(origin, "sdpa")(ids).logits)


def test_a_template_can_be_a_file_of_ones_own(world: World, tmp_path: Path) -> None:
    text = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (tmp_path / "own.jinja").write_text(text)
    model = made(tmp_path, [], path=str(world.base / "model"), template=str(tmp_path / "own.jinja")) / "model"
    assert AutoTokenizer.from_pretrained(model).chat_template == text
    assert AutoTokenizer.from_pretrained(world.base / "model").chat_template != text  # the origin is left alone


def test_a_folder_without_safetensors_is_refused(world: World, tmp_path: Path) -> None:
    origin = tmp_path / "pickled"
    origin.mkdir()
    for path in (world.base / "model").iterdir():
        if path.suffix != ".safetensors":
            (origin / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(world.base / "model" / "model.safetensors"), origin / "pytorch_model.bin")
    with pytest.raises(HalosError, match="holds no safetensors weights"):
        made(tmp_path, [], path=str(origin))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=r"models\.x: there is no model in"):
        made(tmp_path, [], path=str(tmp_path))
    with pytest.raises(HalosError, match="there is no model in"):
        load(tmp_path, "sdpa")


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    config = slice_of(tmp_path, hub="someone/something", revision="v1")
    done = subprocess.run(
        [sys.executable, "-m", "halos", "model", "--config", config, "--output", tmp_path / "x"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: models.x: cannot get someone/something at v1 from the Hugging Face hub")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "architecture",
    [
        {"model_type": "lama"},
        {"model_type": "llama", "hidden_size": "large"},
        {"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4},
    ],
)
def test_an_architecture_that_cannot_be_is_one_sentence(
    architecture: dict[str, Any], world: World, tmp_path: Path
) -> None:
    entry = {**CATALOGUE["models"]["m"], "architecture": architecture}
    with pytest.raises(HalosError, match=r"^models\.x\.architecture: ") as caught:
        made(tmp_path, [world.results / "data/d/train.parquet"], **entry)
    assert "\n" not in str(caught.value)


def test_an_architecture_without_feedback_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match="give --feedback"):
        made(tmp_path, [], **CATALOGUE["models"]["m"])


def test_an_attention_that_is_not_installed_is_refused(world: World) -> None:
    with pytest.raises(HalosError, match="set `attention: auto`"):
        load(world.base / "model", "flash_attention_2")


def test_weights_are_loaded_as_float32_and_saved_as_they_are(world: World, tmp_path: Path) -> None:
    model = load(world.base / "model", "sdpa")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    save(model, model.state_dict(), world.base / "model", tmp_path / "model")
    before, after = (load_file(f / "model.safetensors") for f in (world.base / "model", tmp_path / "model"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_saved_model_has_its_parents_tokenizer_template_and_generation_config(world: World, tmp_path: Path) -> None:
    model = load(world.base / "model", "sdpa")
    save(model, model.state_dict(), world.base / "model", tmp_path / "model")
    kept = [p.name for p in (world.base / "model").iterdir() if p.name not in ("config.json", "model.safetensors")]
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= set(kept)
    for name in kept:
        assert (tmp_path / "model" / name).read_bytes() == (world.base / "model" / name).read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_tied_weights_survive_saving(tmp_path: Path, world: World) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **sizes))
    save(model, model.state_dict(), world.base / "model", tmp_path / "model")
    again = load(tmp_path / "model", "sdpa")
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert torch.equal(again(torch.arange(9)[None]).logits, model.eval()(torch.arange(9)[None]).logits)


def test_lora_trains_its_adapters_only(world: World) -> None:
    model = with_lora(load(world.base / "model", "sdpa"), LORA)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def test_a_saved_lora_model_is_the_merged_one(world: World, tmp_path: Path) -> None:
    def adapted() -> Any:
        torch.manual_seed(0)
        model = with_lora(load(world.base / "model", "sdpa"), LORA)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.1)
        return model

    ids = torch.arange(20)[None]
    with torch.no_grad():
        unmerged = adapted().eval()(ids).logits
        save(adapted(), adapted().state_dict(), world.base / "model", tmp_path / "model")
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model")(ids).logits
        base = load(world.base / "model", "sdpa")(ids).logits
    expected = adapted().merge_and_unload().state_dict()
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    torch.testing.assert_close(saved, unmerged, rtol=1e-4, atol=1e-5)
    assert (saved - base).abs().max() > 0.01
    assert not list((tmp_path / "model").glob("adapter*"))


def test_a_fingerprint_tells_configs_and_inputs_apart() -> None:
    one = fingerprint({"lr": 1e-3, "betas": (0.9, 0.95)}, {"weights": "a"})
    assert one == fingerprint({"betas": [0.9, 0.95], "lr": 1e-3}, {"weights": "a"})
    assert one != fingerprint({"lr": 1e-3, "betas": (0.9, 0.95)}, {"weights": "b"})
    assert one != fingerprint({"lr": 2e-3, "betas": (0.9, 0.95)}, {"weights": "a"})


@pytest.mark.parametrize("kind", ["DEEPSPEED", "MEGATRON_LM", "FSDP"])
def test_processes_that_are_launched_in_other_ways_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP without `is_fsdp2` is its first version."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType[kind])
    with pytest.raises(HalosError, match=r"ddp\.yaml or fsdp\.yaml"):
        accelerator_for("fp32")


# ---- LoRA ------------------------------------------------------------------------------------------------------


def moved(model: Any) -> Any:
    """The model with its trained parameters somewhere else."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def trained_beside_adapters(model: Any) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name]


def tied(world: World, folder: Path) -> Path:
    """The base model with one matrix for its input and its output."""
    model: Any = load(world.base / "model", "sdpa")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    save(model, model.state_dict(), world.base / "model", folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    return folder


@pytest.fixture(params=["untied", "tied"])
def base(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Path:
    return tied(world, tmp_path / "tied") if request.param == "tied" else world.base / "model"


def test_lora_trains_the_embeddings_of_new_tokens_and_of_no_others(base: Path) -> None:
    model, tokenizer, control = begin(base, "sdpa", CSFT, LORA)
    assert tokenizer is not None
    [name] = trained_beside_adapters(model)
    rows = dict(model.named_parameters())[name]
    assert rows.shape == (2, 32)
    ids = torch.tensor([[5, 6, control["chosen"], 7, 8], [5, 6, control["rejected"], 9, 10]])
    for row, token in ((0, "chosen"), (1, "rejected")):
        model.zero_grad()
        batch = [ids[row].tolist()]
        model(torch.tensor(batch)).logits.log_softmax(-1)[0, 2, 7].backward()
        assert rows.grad[row].abs().max() > 0, token


def test_a_merged_model_has_the_embeddings_that_were_trained(base: Path, tmp_path: Path) -> None:
    model, tokenizer, control = begin(base, "sdpa", CSFT, LORA)
    start = model.get_input_embeddings().weight.detach().clone()
    moved(model)
    ids = torch.tensor([[5, 6, control["chosen"], 7, control["rejected"], 8]])
    with torch.no_grad():
        unmerged = model(ids).logits
        expected = copy.deepcopy(model).merge_and_unload()
        save(model, copy.deepcopy(model.state_dict()), base, tmp_path / "model", tokenizer)
        saved: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        torch.testing.assert_close(saved(ids).logits, unmerged, rtol=1e-4, atol=1e-5)
    found, merged = saved.state_dict(), expected.state_dict()
    assert found.keys() == merged.keys()
    assert all(torch.equal(found[name], merged[name]) for name in found)
    rows = saved.get_input_embeddings().weight
    assert torch.equal(rows[:-2], start[:-2])
    assert ((rows[-2:] - start[-2:]).abs().amax(-1) > 0.01).all()
    is_tied = json.loads((base / "config.json").read_text())["tie_word_embeddings"]
    assert (saved.get_output_embeddings().weight is rows) == is_tied
    assert not list((tmp_path / "model").glob("adapter*"))


def test_training_with_lora_moves_the_new_rows_and_leaves_the_old(world: World, tmp_path: Path) -> None:
    run = world.train(tmp_path / "run", "csft", seed=1, changes={"lora": LORA, "examples": 16})
    torch.manual_seed(1)
    start = begin(world.base / "model", "sdpa", CSFT, None)[0].get_input_embeddings().weight
    rows = load_file(run / "model/model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(rows[:-2], start[:-2])
    assert ((rows[-2:] - start[-2:]).abs().amax(-1) > 0).all()


def test_lora_trains_and_saves_the_score_of_a_reward_model(world: World, tmp_path: Path) -> None:
    base = world.base / "model"
    model, tokenizer, _ = begin(base, "sdpa", REWARD, LORA)
    [name] = trained_beside_adapters(model)
    assert "score" in name
    moved(model)
    score = dict(model.named_parameters())[name].detach().clone()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        unmerged = model(ids).logits
        expected = copy.deepcopy(model).merge_and_unload().state_dict()
        save(model, copy.deepcopy(model.state_dict()), base, tmp_path / "model", tokenizer)
        saved: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        torch.testing.assert_close(saved(ids).logits, unmerged, rtol=1e-4, atol=1e-5)
    assert torch.equal(saved.score.weight, score)
    found = load_file(tmp_path / "model/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("loss", [DPO, CSFT, REWARD], ids=lambda loss: type(loss).__name__)
def test_saved_adapters_go_on_from_where_they_were(loss: Any, base: Path, tmp_path: Path) -> None:
    """Whatever seed new weights are drawn with, and with everything trained that was trained before."""
    torch.manual_seed(0)
    model, tokenizer, _ = begin(base, "sdpa", loss, LORA)
    moved(model)
    save(model, model.state_dict(), base, tmp_path / "kept", tokenizer, merge=False)
    names = {path.name for path in (tmp_path / "kept").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names
    assert "model.safetensors" not in names
    torch.manual_seed(1)
    again, _, _ = begin(base, "sdpa", loss, {**LORA, "path": str(tmp_path / "kept")})
    before, after = ({n: p for n, p in m.named_parameters() if p.requires_grad} for m in (model, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7, 8]])
        known = slice(512)  # what is said of tokens that never are said is not saved
        assert torch.equal(again.eval()(ids).logits[..., known], model(ids).logits[..., known])
    with torch.no_grad():
        start = begin(base, "sdpa", loss, None)[0].eval()(ids).logits[..., known]
        assert (model(ids).logits[..., known] - start).abs().max() > 0.01


def test_a_folder_without_adapters_is_one_sentence(world: World, tmp_path: Path) -> None:
    with pytest.raises(
        HalosError, match=r"^lora\.path: there are no adapters in \S+ \(no adapter_model.*\); put them there"
    ):
        begin(world.base / "model", "sdpa", DPO, {**LORA, "path": str(tmp_path)})


@pytest.mark.parametrize(("saved", "wanted"), [(DPO, CSFT), (DPO, REWARD), (REWARD, DPO), (CSFT, DPO)])
def test_adapters_of_another_kind_of_loss_are_refused(saved: Any, wanted: Any, world: World, tmp_path: Path) -> None:
    """They would leave new embeddings or a score as they were drawn."""
    base = world.base / "model"
    model, tokenizer, _ = begin(base, "sdpa", saved, LORA)
    save(model, model.state_dict(), base, tmp_path / "kept", tokenizer, merge=False)
    with pytest.raises(HalosError, match=r"^lora\.path: the adapters in \S+ are of another kind of loss"):
        begin(base, "sdpa", wanted, {**LORA, "path": str(tmp_path / "kept")})


# ---- reward models ---------------------------------------------------------------------------------------------


def with_tokens(world: World, folder: Path, change: Callable[[Any], None]) -> Path:
    templated(world, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


def pad_is_eos(tokenizer: Any) -> None:
    tokenizer.pad_token = tokenizer.eos_token


@pytest.mark.parametrize("pad", [None, pad_is_eos])
def test_a_trained_reward_model_is_what_transformers_loads(
    pad: Callable[[Any], None] | None, world: World, tmp_path: Path
) -> None:
    """One score, whose padding ends no turn, also when the parent padded with its end of a turn."""
    parent = tmp_path / "parent"
    shutil.copytree(world.base, parent)
    if pad is not None:
        shutil.rmtree(parent / "model")
        with_tokens(world, parent / "model", pad)
    run = world.train(tmp_path / "run", "bradley_terry", parent=parent, changes={"examples": 16})
    assert [path.name for path in (run / "model").glob("*.safetensors")] == ["model.safetensors"]
    assert not list((run / "model").glob("*.bin"))
    model: Any = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(run / "model")
    template = Template(tokenizer)
    assert (model.config.num_labels, model.score.weight.shape) == (1, (1, 32))
    assert model.config.pad_token_id == tokenizer.pad_token_id != template.end
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(parent / "model").chat_template

    prompts, responses = (
        template.prompts(CONVERSATIONS, 100),
        template.responses(["The Pacific.", "No!", "I do not."]),
    )
    ids = [[*(prompt.ids or ()), *(response.ids or ())] for prompt, response in zip(prompts, responses, strict=True)]
    with torch.no_grad():
        alone = torch.cat([model(torch.tensor([i])).logits[:, 0] for i in ids])
        padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        torch.testing.assert_close(model(**padded).logits[:, 0], alone, rtol=1e-4, atol=1e-6)
        for sequence, score in zip(ids, alone, strict=True):  # vLLM scores the last token that it is given
            states = model.model(torch.tensor([sequence])).last_hidden_state
            torch.testing.assert_close(model.score(states[0, -1])[0], score, rtol=1e-4, atol=1e-6)
    assert len(set(alone.tolist())) == 3


def test_a_reward_model_is_no_policy(world: World, tmp_path: Path) -> None:
    child, _ = child_of(world.base / "model", tmp_path / "child", REWARD)
    for loss in (DPO, CSFT):
        with pytest.raises(HalosError, match=r"^the model in \S+ is a reward model"):
            begin(child, "sdpa", loss, None)


def test_the_trainers_scores_are_those_of_the_saved_model(world: World, tmp_path: Path) -> None:
    model, tokenizer, _ = begin(world.base / "model", "sdpa", REWARD, None)
    moved(model)
    store = Store(world.store)
    save(model, model.state_dict(), world.base / "model", tmp_path / "model", tokenizer)
    saved: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    wrapped = SequenceScores(model)
    for packed in (False, True):
        assert not packed or enable_packing(wrapped, 100) is None
        examples = Examples(store, store.view("train", "paired"), VIEWS["paired"], packed=packed)
        [batch] = examples.microbatches(np.arange(6), ROLES, 10**6)
        with torch.no_grad():
            scores = wrapped(batch.to(torch.device("cpu")))["scores"]
            for score, ids in zip(scores, ids_of(batch.layout), strict=True):
                alone = saved(torch.tensor([ids])).logits[0, 0]
                torch.testing.assert_close(alone, score, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "unk", "pad"),
    [
        (["<|im_start|>", "<|finetune_right_pad_id|>"], None, "<|finetune_right_pad_id|>"),
        (["<|im_start|>"], "<unk>", "<unk>"),
        (["<|im_start|>", "<|other|>"], None, "<|im_start|>"),
    ],
)
def test_padding_is_the_special_token_that_means_least(
    more: list[str], unk: str | None, pad: str, world: World, tmp_path: Path
) -> None:
    tokenizer = bare({"unk_token": unk} if unk else {})
    tokenizer.add_special_tokens({"extra_special_tokens": more})
    folder = replaced(world, tmp_path / "model", tokenizer)
    model, changed, _ = begin(folder, "sdpa", REWARD, None)
    assert changed is not None
    assert changed.pad_token == pad
    assert model.config.pad_token_id == changed.pad_token_id != changed.eos_token_id


def test_a_tokenizer_without_another_special_token_cannot_make_a_reward_model(world: World, tmp_path: Path) -> None:
    folder = replaced(world, tmp_path / "model", bare({}))
    with pytest.raises(HalosError, match=r"^a reward model needs a padding token .* turn: ") as caught:
        begin(folder, "sdpa", REWARD, None)
    assert "\n" not in str(caught.value)
    assert begin(folder, "sdpa", DPO, None)[1] is None  # any other loss can


def bare(special: dict[str, str]) -> PreTrainedTokenizerFast:
    """A tokenizer that pads with its only end."""
    from tokenizers import Tokenizer, models

    vocabulary = {word: i for i, word in enumerate(["a", "b", "</s>", *special.values()])}
    words = Tokenizer(models.BPE(vocabulary, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>", **special)
    tokenizer.chat_template = "{% for m in messages %}a{{ m.content }}{{ eos_token }}{% endfor %}"
    return tokenizer


def replaced(world: World, folder: Path, tokenizer: Any) -> Path:
    """The base model with another tokenizer."""
    shutil.copytree(world.base / "model", folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    tokenizer.save_pretrained(folder)
    return folder
