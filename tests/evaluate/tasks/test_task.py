"""Tasks: a tiny random model's scores, worked out from its own log-probabilities, are what lm-eval reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from halos.data import feedback as F
from halos.errors import HalosError
from halos.evaluate.tasks import task as tasks
from halos.evaluate.tasks.local import preferences
from halos.evaluate.tasks.result import TaskResult
from halos.evaluate.tasks.settings import TaskSlice
from halos.settings import dump, read_slice
from tests.conftest import CATALOGUE, World
from tests.workflow.conftest import Project, copy_files

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SENTENCE = "the cat sat on a red mat and two dogs ran to my old house while it was cold"
WORDS = SENTENCE.split()
CONTEXT = 96


def text(seed: int, words: int) -> str:
    return " ".join(WORDS[(seed * 7 + i * (seed % 5 + 1)) % len(WORDS)] for i in range(words))


def turn(role: str, content: str) -> F.Turn:
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama and a byte-level BPE tokenizer that, left alone, puts <s> before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([text(i, 12) for i in range(50)], trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                    num_attention_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.3)
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def records(n: int = 40) -> list[F.Feedback]:
    """One turn or three, three responses of different length, the third the best."""
    out = []
    for i in range(n):
        prompt = [turn("user", f"{text(i, 4)} {i}?")]
        if i % 2:
            prompt = [turn("user", text(i, 3)), turn("assistant", text(i + 1, 3)), *prompt]
        responses = [text(i + j, 2 + (i * 3 + j * 2) % 7) + str(j) for j in range(3)]
        out.append(F.Feedback(prompt, responses, "test", scores=[0.0, 1.0, 2.0], pairs=[(1, 0), (2, 1)]))
    return out


def run(folder: Path, model: Path, rows: list[F.Feedback] | None, **changes: Any) -> dict[str, Any]:
    content = {"task_id": "mine", "task": None, "local": "preferences", "metric": "acc", "limit": None,
               "num_fewshot": None, "batch_size": 16}  # fmt: skip
    (folder / "task.yaml").write_text(dump(content | changes))
    feedback = None
    if rows is not None:
        feedback = folder / "test.parquet"
        F.write(rows, feedback)
    output = folder / "tasks" / "mine.json"
    tasks.evaluate(folder / "task.yaml", model, output, feedback)
    assert list(output.parent.iterdir()) == [output]
    result: dict[str, Any] = json.loads(output.read_text())
    return result


def by_hand(model: Path, rows: list[F.Feedback]) -> list[tuple[list[float], list[float]]]:
    """Of each record's responses, the log-probability given the prompt, and the same by character. The template is
    written out by hand, and ids are tokenised with no special token added."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llama: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(model)

    def log_probability(record: F.Feedback, response: str) -> float:
        turns = "".join(f"<|{t['role']}|>\n{t['content']}<|end|>\n" for t in record.prompt)
        prompt = tokenizer.encode("<s>" + turns + "<|assistant|>\n", add_special_tokens=False)
        choice = tokenizer.encode(response, add_special_tokens=False)
        with torch.no_grad():
            logits = llama(torch.tensor([prompt + choice])).logits[0, len(prompt) - 1 : -1]
        return float(logits.log_softmax(-1).gather(1, torch.tensor(choice)[:, None]).sum())

    out = []
    for record in rows:
        scores = [log_probability(record, r) for r in record.responses]
        out.append((scores, [s / len(r) for s, r in zip(scores, record.responses, strict=True)]))
    return out


def test_preference_accuracy_is_that_of_the_models_own_log_probabilities(tmp_path: Path, model: Path) -> None:
    rows = records()
    result = run(tmp_path, model, rows)
    hand = list(zip(rows, by_hand(model, rows), strict=True))
    acc, acc_norm = (sum(s[i][w] > s[i][lo] for r, s in hand for w, lo in r.pairs) / 80 for i in range(2))
    scores = result["results"]["preferences"]
    assert 0.2 < acc < 0.8
    assert acc != acc_norm
    assert (scores["acc,none"], scores["acc_norm,none"]) == pytest.approx((acc, acc_norm))
    assert {"results", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "config"} <= set(result)
    assert {"lm_eval_version", "transformers_version", "date"} <= set(result)
    assert result["halos"] == {
        "task_id": "mine",
        "backend": "transformers",
        "metric": "acc,none",
        "value": scores["acc,none"],
        "stderr": pytest.approx((acc * (1 - acc) / 79) ** 0.5),
        "n": 80,
        "too_long": 0,
    }


def test_the_model_is_given_the_templates_tokens_and_no_other(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    seen: list[tuple[str, str]] = []
    score = HFLM._loglikelihood_tokens

    def spy(self: Any, requests: list[Any], **options: Any) -> Any:
        seen.extend((self.tokenizer.decode(context), self.tokenizer.decode(choice)) for _, context, choice in requests)
        return score(self, requests, **options)

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", spy)
    prompt = [turn("system", "s"), turn("user", "the cat"), turn("assistant", "sat"), turn("user", "on?")]
    run(tmp_path, model, [F.Feedback(prompt, ["a mat", "red"], "test", pairs=[(0, 1)])])
    earlier = "<s><|system|>\ns<|end|>\n<|user|>\nthe cat<|end|>\n<|assistant|>\nsat<|end|>\n"
    whole = earlier + "<|user|>\non?<|end|>\n<|assistant|>\n"
    assert sorted(seen) == [(whole, "a mat"), (whole, "red")]
    assert AutoTokenizer.from_pretrained(model).encode("a")[0] == 0, "left alone, this tokenizer does add <s>"


def test_best_response_takes_records_with_one_best_score_and_all_their_responses(tmp_path: Path, model: Path) -> None:
    rows = records(20)
    tied = F.Feedback([turn("user", "tied")], ["a", "b"], "test", scores=[1.0, 1.0])
    alone = F.Feedback([turn("user", "alone")], ["a"], "test", scores=[1.0])
    unscored = F.Feedback([turn("user", "none")], ["a", "b"], "test")
    result = run(tmp_path, model, [tied, alone, unscored, *rows], local="best_response", metric="acc_norm,none")
    right = [normed.index(max(normed)) == 2 for _, normed in by_hand(model, rows)]
    assert 0 < sum(right) < 20
    assert result["halos"]["value"] == pytest.approx(sum(right) / 20)
    assert (result["halos"]["metric"], result["halos"]["n"]) == ("acc_norm,none", 20)


def test_the_gold_position_is_balanced_and_the_same_each_time() -> None:
    documents = list(preferences(iter(records(500))))
    assert documents == list(preferences(iter(records(500))))
    assert 420 < sum(d["gold"] for d in documents) < 580
    chosen = [record.responses[w] for record in records(500) for w, _ in record.pairs]
    assert [d["choices"][d["gold"]] for d in documents] == chosen


def test_limit_and_documents_too_long_for_the_model(tmp_path: Path, model: Path) -> None:
    long = F.Feedback([turn("user", text(1, 4))], ["yes", text(3, 200)], "test", pairs=[(0, 1)])
    result = run(tmp_path, model, [long, *records(20)], limit=5)
    assert (result["halos"]["n"], result["halos"]["too_long"]) == (4, 1)


def test_the_documents_do_not_stay_in_the_users_cache(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    run(tmp_path, model, records(2))
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def arc(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own tasks, but only the folder `arc` is indexed (all take 15 s), and the data is made here."""
    import datasets
    import lm_eval.tasks

    class Manager(lm_eval.tasks.TaskManager):
        def __init__(self, include_defaults: bool) -> None:
            own = Path(lm_eval.tasks.__file__).parent / "arc"
            super().__init__(include_path=own if include_defaults else None, include_defaults=False)

    def load_dataset(path: str, name: str, **_: Any) -> Any:
        if name != "ARC-Easy":
            raise ConnectionError("offline")
        rows = [{"question": text(i, 5), "choices": {"text": [text(i, 2), text(i + 1, 3)], "label": ["A", "B"]},
                 "answerKey": "AB"[i % 2]} for i in range(6)]  # fmt: skip
        return datasets.DatasetDict({s: datasets.Dataset.from_list(rows) for s in ("train", "validation", "test")})

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Manager)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.usefixtures("arc")
def test_a_task_of_lm_eval_is_run_by_name(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, model, None, task="arc_easy", local=None, limit=4, num_fewshot=1, metric="acc_norm")
    assert result["halos"]["value"] == result["results"]["arc_easy"]["acc_norm,none"]
    assert (result["halos"]["n"], result["n-shot"]["arc_easy"]) == (4, 1)


@pytest.mark.usefixtures("arc")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "arc_eazy"}, "no task 'arc_eazy'; did you mean 'arc_easy'"),
        ({"task": "zzz"}, "lm-eval ls tasks"),
        ({"task": "arc_easy", "metric": "accc"}, "no metric 'accc'; it has acc, acc_norm"),
        ({"task": "arc_easy", "metric": "acc,strict"}, "no metric 'acc,strict'; it has acc,none"),
        ({"task": "arc_challenge"}, "the data of task arc_challenge cannot be had"),
    ],
)
def test_a_task_that_cannot_be_run_is_refused_in_one_sentence(
    tmp_path: Path, model: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(HalosError, match=says):
        run(tmp_path, model, None, local=None, limit=2, **changes)
    assert not (tmp_path / "tasks" / "mine.json").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"local": "preferences"}, "has pairs"),
        ({"local": "best_response"}, "single best"),
        ({"local": "preference"}, "local: Input should be 'preferences' or 'best_response'"),
        ({"num_fewshot": 2}, "num_fewshot"),
    ],
)
def test_a_local_task_without_documents_is_refused(
    tmp_path: Path, model: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(HalosError, match=says):
        run(tmp_path, model, [F.Feedback([turn("user", "q")], ["a"], "test")], **changes)


def test_missing_models_and_feedback_are_named(tmp_path: Path, model: Path) -> None:
    with pytest.raises(HalosError, match="no model in"):
        run(tmp_path, tmp_path / "nowhere", records(2))
    with pytest.raises(HalosError, match="needs feedback"):
        run(tmp_path, model, None)


def test_a_groups_value_is_its_aggregate_and_a_metric_without_filter_means_the_first() -> None:
    scores = {"em,strict": 0.5, "em_stderr,strict": "N/A", "em,flexible": 0.75, "sample_len": 8}
    output = {"results": {"group": scores}, "higher_is_better": {"group": {"em": False}}}
    fields: dict[str, Any] = {"task_id": "t", "backend": "transformers", "too_long": 0}
    result = TaskResult.of(output, "group", "em", **fields)
    assert (result.metric, result.value, result.stderr, result.n) == ("em,strict", 0.5, None, 8)
    assert not result.higher_is_better
    assert TaskResult.of(output, "group", "em,flexible", **fields).value == 0.75
    with pytest.raises(HalosError, match="has no metric 'acc'; it has em,strict, em_stderr,strict, em,flexible"):
        TaskResult.of(output, "group", "acc", **fields)


@pytest.mark.parametrize(("directions", "higher"), [({"t": {"acc": True}}, True), ({"t": {"acc": False}}, False),
                                                    ({"t": {"other": False}}, True), ({}, True)])  # fmt: skip
def test_a_result_reads_back_with_the_direction_of_its_metric(
    directions: dict[str, Any], higher: bool, tmp_path: Path
) -> None:
    result = TaskResult(task_id="mine", backend="vllm", metric="acc,none", value=0.5, stderr=None, n=4, too_long=1)
    result.write(tmp_path / "mine.json", {"results": {}, "higher_is_better": directions})
    assert TaskResult.read(tmp_path / "mine.json") == result.model_copy(update={"higher_is_better": higher})


def test_the_slice_of_the_catalogue_is_the_one_that_a_task_reads(world: World) -> None:
    path = world.slice("tasks/t")
    assert TaskSlice.read(path).model_dump(exclude={"plugins"}) == read_slice(path)


def test_a_file_that_is_no_result_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(HalosError, match=r"there is no .*mine\.json; run `snakemake"):
        TaskResult.read(tmp_path / "mine.json")
    for text in ("{", "[]", "{}", '{"halos": {"metric": "acc"}}'):
        (tmp_path / "mine.json").write_text(text)
        with pytest.raises(HalosError, match="is not the result of a task; delete it"):
            TaskResult.read(tmp_path / "mine.json")


@pytest.mark.parametrize(
    ("resources", "options", "gres"),
    [
        ({}, "--backend transformers --tensor-parallel 1", ""),
        ({"gpus": 2, "tensor_parallel": 2}, "--backend vllm --tensor-parallel 2", "gpu:2"),
    ],
)
def test_the_workflow_runs_tasks_on_what_samples_the_model(
    tmp_path: Path, resources: dict[str, Any], options: str, gres: str
) -> None:
    project = Project(copy_files(tmp_path))
    project.write_config(CATALOGUE)
    project.edit({"models.m.resources": resources})
    run = project.dry("-p", "tasks")
    jobs = [job for job in run.jobs if job.rule == "answer"]
    assert [job.resources.get("gres", "") for job in jobs] == [gres] * 2
    output = " ".join(run.output.replace("\\\n", " ").split())
    commands = re.findall(
        r"python -m halos\.distributed\.launch --one-process --gpus (\d) answer (.*?)(?=python|$)", output
    )
    assert [(f"gpu:{gpus}" if gpus != "0" else "", options in words) for gpus, words in commands] == [(gres, True)] * 2
