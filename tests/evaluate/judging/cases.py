"""A small folder to judge, for the tests of judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from halos.data import feedback as F
from halos.evaluate.judging.judge import judge
from halos.registry import VERIFIERS
from halos.settings import dump


@VERIFIERS.register("test_letters")
def letters(prompt: list[F.Turn], response: str) -> dict[str, float]:
    """`a`: share of a's; `end`: whether it ends in a full stop. The word boom makes it fail."""
    if "boom" in response:
        raise RuntimeError("boom")
    return {"a": response.count("a") / max(len(response), 1), "end": float(response.endswith("."))}


def record(question: str, target: str | None) -> F.Feedback:
    prompt = [{"role": "user", "content": question}]
    return F.Feedback(prompt, [target or "other"], "test", target=None if target is None else 0)


class Case:
    """A folder with a judge's inputs; `run` gives its output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "judged" / "letters.json"
        self.lines: list[str] = []
        self.records: list[F.Feedback] = []

    def add(self, question: str, target: str | None, *responses: str) -> F.Feedback:
        self.records.append(record(question, target))
        for i, response in enumerate(responses):
            self.sample(self.records[-1].prompt_id, i, response)
        return self.records[-1]

    def sample(self, prompt_id: str, sample: int, response: str) -> None:
        row = {"prompt_id": prompt_id, "prompt": [], "response": response, "sample": sample, "finish_reason": "stop"}
        self.lines.append(json.dumps(row))

    def run(
        self,
        model: tuple[Path, ...] = (),
        outputs: tuple[Path, ...] = (),
        hard: tuple[Path, ...] = (),
        /,
        **changes: Any,
    ) -> dict[str, Any]:
        """What comes of the reward model's files, the baseline's and AlpacaEval's difficulties."""
        content = {"judge": "letters", "prompts": "p", "baseline": "target", "ties": "half", "whole_sentences": False,
                   "length_control": "length_only", "difficulties": None, "plugins": {}}  # fmt: skip
        kind = {} if "kind" in changes else {"kind": "verifier", "verifier": "test_letters"}
        (self.folder / "judge.yaml").write_text(dump(content | kind | changes))
        (self.folder / "samples.jsonl").write_text("".join(line + "\n" for line in self.lines))
        F.write(self.records, self.folder / "test.parquet")
        samples, data = self.folder / "samples.jsonl", self.folder / "test.parquet"
        files = {"reward_model": list(model), "baseline": list(outputs), "difficulties": list(hard)}
        how = {"tokens_per_microbatch": 2048, "concurrency": 16, "requests_per_minute": None}
        judge(self.folder / "judge.yaml", samples, data, self.output, **files, **how)
        result: dict[str, Any] = json.loads(self.output.read_text())
        return result
