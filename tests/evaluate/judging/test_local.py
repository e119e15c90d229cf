"""A model of the catalogue as judge, in a job: the same verdicts as the same model behind a server, and its weights."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from halos.errors import HalosError
from halos.evaluate.judging.decide import decide
from halos.evaluate.judging.judgement import Judgement
from halos.evaluate.judging.local import LocalModel, weighed
from halos.evaluate.judging.settings import Judge, JudgingSlice, ToJudge
from halos.settings import dump
from tests.conftest import World
from tests.evaluate.judging.cases import Case
from tests.scoring.api_server import ApiServer, Messages

pytestmark = pytest.mark.usefixtures("local_server")
PROMPT = "{instruction} 1 {output_1} 2 {output_2}"
READ = {"prompt": PROMPT, "pattern": "(?i)[^ab]*([ab])", "max_tokens": 24}
"""A model that was never trained says neither A nor B: any a or b in what it says is its verdict."""


class Served:
    """A model behind a server, by transformers' own calls."""

    def __init__(self, folder: Path, longest: int) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.network: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.longest = longest

    def ids(self, messages: Messages) -> Any:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]

    def answer(self, messages: Messages) -> str:
        ids = self.ids(messages)
        with torch.inference_mode():
            out = self.network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                        max_new_tokens=self.longest, pad_token_id=0)  # fmt: skip
        tokens = out[0, ids.shape[1] :].tolist()
        ended = tokens[-1] in self.network.generation_config.eos_token_id
        return str(self.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True))

    def logprobs(self, messages: Messages) -> Any:
        with torch.inference_mode():
            return self.network(self.ids(messages)).logits[0, -1].log_softmax(-1)


ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-trackers/bin/python"
"""An interpreter with what the server of transformers needs beside this one's packages."""


@contextmanager
def server_of_transformers(folder: Path, log: Path) -> Iterator[str]:
    """The address of `transformers serve` with a model."""
    if not PYTHON.exists():
        reason = "there is no .venv-trackers, which has a web server: `make env-trackers` makes it"
        if os.environ.get("HALOS_NEED_TRACKERS"):
            pytest.fail(reason)
        pytest.skip(reason)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "transformers.cli.transformers", "serve", folder, "--device", "cpu", "--port", port]
    with log.open("w") as said:
        server = subprocess.Popen(
            list(map(str, command)), stdout=said, stderr=said, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
    try:
        while server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.5)
        assert server.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def add(case: Case, n: int = 24) -> None:
    for i in range(n):
        case.add(f"q{i}?", "yes " * (1 + i % 5), "no, " * (1 + i % 7) + str(i))


def local(**asked: Any) -> dict[str, Any]:
    return {"kind": "model", "model": {"model": "m", **asked}}


def files(world: World) -> tuple[Path, Path]:
    return world.base / "model", world.base / "manifest.json"


@pytest.mark.parametrize("real", [False, True], ids=["ours", "transformers"])
def test_verdicts_are_those_of_the_same_model_behind_a_server(
    case: Case, world: World, tmp_path: Path, real: bool
) -> None:
    """With such weights for what ends an answer that a model which was never trained comes to an end."""
    add(case)
    folder = tmp_path / "model"
    shutil.copytree(world.base / "model", folder)
    network: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        network.get_output_embeddings().weight[network.generation_config.eos_token_id] *= 2
    network.save_pretrained(folder)
    here = case.run((folder, world.base / "manifest.json"), **local(**READ), both_orders=True, max_failures=1.0)
    case.output = tmp_path / "served/letters.json"
    asked = {"model": str(folder), **READ}
    with ExitStack() as running:
        if real:
            address = running.enter_context(server_of_transformers(folder, tmp_path / "log"))
        else:  # what reaches its limit is cut off, says either; this server says of no answer that it did
            address = running.enter_context(ApiServer(answer=Served(folder, 24).answer)).base_url
        there = case.run(kind="openai", openai=asked | {"base_url": address}, both_orders=True, max_failures=1.0)
    said = {a["prompt_id"]: [q["answer"] for q in a["asked"]] for a in there["annotations"]}
    preferred = {a["prompt_id"]: [q["preference"] for q in a["asked"]] for a in there["annotations"]}
    compared = 0
    for a in here["annotations"]:
        for question, answer, value in zip(a["asked"], said[a["prompt_id"]], preferred[a["prompt_id"]], strict=True):
            if question["answer"] is not None:
                assert (question["answer"], question["preference"]) == (answer, value)
                compared += 1
    assert compared >= 8
    assert here["question"]["server"] == "none: a job of the workflow"
    assert here["usage"]["dollars"] is None


def test_choices_are_weighed_by_the_models_probabilities(case: Case, world: World, tmp_path: Path) -> None:
    add(case, 9)
    result = case.run(files(world), **local(prompt=PROMPT, choices=["A", "B", "tie"]))
    served = Served(world.base / "model", 1)
    tokens = [served.tokenizer.encode(choice, add_special_tokens=False)[0] for choice in ("A", "B", "tie")]
    texts = {record.prompt_id: record for record in case.records}
    responses = {line["prompt_id"]: line["response"] for line in map(json.loads, case.lines)}
    for a in result["annotations"]:
        record = texts[a["prompt_id"]]
        pair = [responses[a["prompt_id"]], record.responses[0]]
        first, second = pair if a["shown_first"] == "candidate" else reversed(pair)
        question = f"{record.prompt[0]['content']} 1 {first} 2 {second}"
        p = served.logprobs([{"role": "user", "content": question}])[tokens].softmax(-1).tolist()
        mean = p[0] * 1 + p[1] * 2 + p[2] * 1.5
        assert a["preference"] == pytest.approx(3 - mean if a["shown_first"] == "candidate" else mean, abs=1e-5)
        assert a["answer"] == ("A", "B", "tie")[p.index(max(p))]
    again = case.run(files(world), **local(prompt=PROMPT, choices=["A", "B", "tie"]))
    assert again["annotations"] == result["annotations"]


def test_the_likeliest_first_tokens_are_the_models(world: World) -> None:
    served, model = Served(world.base / "model", 1), LocalModel("m", files(world), batch=3)
    questions = [[{"role": "user", "content": "word " * n}] for n in (1, 9, 4, 4, 2)]
    for question, answer in zip(questions, model.likeliest(questions, 5), strict=True):
        known = served.logprobs(question).topk(5)
        assert answer.logprobs is not None
        top = answer.logprobs[0]["top_logprobs"]
        assert [t["token"] for t in top] == [served.tokenizer.decode(i) for i in known.indices.tolist()]
        assert [t["logprob"] for t in top] == pytest.approx(known.values.tolist(), abs=1e-4)
        assert (answer.text, answer.completion_tokens) == (top[0]["token"], 1)


def test_a_question_that_the_model_has_no_room_for_fails_and_is_counted(case: Case, world: World) -> None:
    add(case, 3)
    case.add("long?", "b", "word " * 400)
    result = case.run(files(world), **local(prompt=PROMPT, choices=["A", "B"]), max_failures=0.5)
    assert result["failed"] == {"longer than the model's context": 1}
    with pytest.raises(HalosError, match=r"no answer to 1 of 4 comparisons \(1 longer than the model's context\)"):
        case.run(files(world), **local(prompt=PROMPT, choices=["A", "B"]))


def test_weights_of_choices() -> None:
    def completion(**logprobs: float) -> dict[str, Any]:
        top = [{"token": token, "logprob": value} for token, value in logprobs.items()]
        return {"logprobs": {"content": [{"top_logprobs": top}]}}

    assert weighed(completion(A=math.log(0.6), B=math.log(0.2)), ["A", "B"]) == [pytest.approx(1.25)]
    assert weighed(completion(A=-900.0, B=-2000.0, C=-900.0), ["A", "B", "C"]) == [pytest.approx(1.25)]
    assert math.isnan(weighed(None, ["A", "B"])[0])


def test_one_load_judges_all_cells_of_a_batch(case: Case, world: World, tmp_path: Path, capfd: Any) -> None:
    add(case, 4)
    folder, manifest = files(world)
    alone = case.run((folder, manifest), **local(prompt=PROMPT, choices=["A", "B"]))
    capfd.readouterr()
    asked = [
        ToJudge(judged=f"judged/{name}.json", config=str(case.folder / "judge.yaml"),
                samples=str(case.folder / "samples.jsonl"), feedback=str(case.folder / "test.parquet"),
                reward_model=(str(folder), str(manifest)))
        for name in ("x", "y")
    ]  # fmt: skip
    batch = tmp_path / "batch.yaml"
    batch.write_text(dump(JudgingSlice(judgements=asked).model_dump(mode="json")))
    decide(batch, tmp_path / "out", tmp_path / "kept")
    assert capfd.readouterr().err.count("loading the model in") == 1
    for name in ("x", "y"):
        made = Judgement.read(tmp_path / f"out/judged/{name}.json")
        assert [a.preference for a in made.annotations] == [a["preference"] for a in alone["annotations"]]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "m"}, "give exactly one of prompt and annotator"),
        ({"model": "m", "prompt": PROMPT, "choices": ["A"]}, "choices are two or three different answers"),
        ({"model": "m", "prompt": PROMPT, "choices": ["A", "A"]}, "choices are two or three different answers"),
        ({"model": "m", "prompt": PROMPT, "choices": ["A", "B"], "max_tokens": 3}, "choices are in place of a text"),
        ({"model": "m", "prompt": "{instruction}"}, "the prompt has no {output_1} and no {output_2}"),
    ],
)
def test_contradictory_settings_are_refused_in_one_sentence(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("{", r"\{").replace("}", r"\}")):
        Judge.model_validate({"kind": "model", "model": settings, "prompts": "p"})


def test_choices_that_begin_alike_are_refused(case: Case, world: World) -> None:
    add(case, 2)
    with pytest.raises(HalosError, match="two of the choices A1, A2 begin with the same token of m: take others"):
        case.run(files(world), **local(prompt=PROMPT, choices=["A1", "A2"]))
