"""Scores given by a reward model."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from halos.data.feedback import Turn
from halos.errors import HalosError
from halos.models.load import check_reward_model
from halos.scoring.scores import Means, Score

log = logging.getLogger(__name__)


class RewardModel:
    """A saved reward model, read once: prompts and responses in, scores out.

    Args:
        folder: an `AutoModelForSequenceClassification` with one label, with its tokenizer and chat template: the
            `model/` of a run that trained one, or one from elsewhere.
        precision: compute type on an accelerator, bf16 or fp32; on the CPU it is float32.
        attention: attention implementation.
        tokens_per_microbatch: tokens of one forward pass, padding included.

    Attributes:
        positions: tokens that the model has room for; None when it names no limit.

    Raises:
        HalosError: the folder holds no such model.
    """

    def __init__(
        self, folder: Path, precision: str = "bf16", attention: str = "sdpa", tokens_per_microbatch: int = 16384
    ) -> None:
        import torch
        from accelerate import PartialState
        from transformers import AutoTokenizer

        from halos.distributed.accelerator import check_processes
        from halos.models.load import load
        from halos.tokens.template import Template

        check_reward_model(folder)
        try:
            self.template = Template(AutoTokenizer.from_pretrained(folder))
            model: Any = load(folder, attention, score=True)
        except (OSError, ValueError) as error:
            raise HalosError(f"cannot load the reward model in {folder}: {' '.join(str(error).split())}") from error
        self.folder, self.budget = folder, tokens_per_microbatch
        self.processes = PartialState(cpu=not torch.accelerator.is_available())
        check_processes(self.processes.num_processes)
        self.device = self.processes.device
        self.bf16 = precision == "bf16" and self.device.type != "cpu"
        self.model = model.to(self.device).eval()
        config = model.config.get_text_config()
        config.use_cache = False
        if config.pad_token_id is None:  # any id that ends no sequence: the score is read off the last other token
            config.pad_token_id = int(self.template.end == 0)
        self.padding: int = config.pad_token_id
        self.positions: int | None = getattr(config, "max_position_embeddings", None)

    def score(self, prompts: list[list[Turn]], responses: list[str]) -> list[float | None]:
        """The score of each response to its prompt, in their order; higher is better, and the scale is the model's own.

        A sequence is what the sequence store makes of the same texts, but never truncated. An empty response, one that
        does not fit the model's positions with its prompt, or one without a finite score gets None, and how many there
        are is said once. A score depends on nothing but its own prompt and response. Of several processes, which are
        all given the same texts, each scores a share, and all get all scores.
        """
        if not responses:
            return []
        heads = self.template.prompts(prompts, max_length=sys.maxsize)
        tails = self.template.responses(responses)
        sequences = [(*(head.ids or ()), *tail) for head, tail in zip(heads, tails, strict=True)]
        limit = self.positions or sys.maxsize
        empty = [not text.strip() for text in responses]
        wanted = {s for s, nothing in zip(sequences, empty, strict=True) if not nothing and len(s) <= limit}
        scores = self._scores(sorted(wanted))
        found = [None if nothing else scores.get(s) for s, nothing in zip(sequences, empty, strict=True)]
        if failed := found.count(None):
            long = sum(len(s) > limit and not nothing for s, nothing in zip(sequences, empty, strict=True))
            log.warning(
                "%d of %d responses get no score of the reward model in %s: %d are empty, %d are too long for its %s "
                "positions, %d have no finite score",
                failed, len(found), self.folder, sum(empty), long, self.positions, failed - sum(empty) - long,
            )  # fmt: skip
        return found

    def _scores(self, sequences: list[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
        """The finite scores of different sequences; this process computes its share of them."""
        import numpy as np
        import torch
        from accelerate.utils import gather_object
        from torch.nn.utils.rnn import pad_sequence

        from halos.forward.budget import cut

        found: dict[tuple[int, ...], float] = {}
        lengths = np.array([len(s) for s in sequences], dtype=np.int64)
        rank, world = self.processes.process_index, self.processes.num_processes
        parts = cut(lengths, self.budget, world)[rank::world] if sequences else []
        bar = tqdm(total=sum(map(len, parts)), desc="score", unit=" responses", mininterval=1, disable=rank > 0)
        for part in filter(len, parts):
            rows = [torch.tensor(sequences[i], device=self.device) for i in part]
            ids = pad_sequence(rows, batch_first=True, padding_value=self.padding)
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                scores = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
            found |= {sequences[i]: x for i, x in zip(part, scores, strict=True) if math.isfinite(x)}
            bar.update(len(part))
        bar.close()
        return {sequence: score for share in gather_object([found]) for sequence, score in share.items()}


def by_reward_model(model: RewardModel) -> Means:
    """The model's score, under the name `reward`."""

    def score(_: dict[str, Any], prompts: list[list[Turn]], responses: list[str]) -> list[Score]:
        values = model.score(prompts, responses)
        none = Score(problem="no score of the reward model: empty, too long for it, or not finite")
        return [none if value is None else Score({"reward": value}) for value in values]

    return score


def open_reward_model(what: str, kind: str, files: list[Path], tokens_per_microbatch: int) -> RewardModel | None:
    """The reward model that scores, computing as in its own run: the manifest tells how.

    Args:
        what: who asks, for messages: `judge x` or `labeller x`.
        kind: its kind; only a `reward_model` has one.
        files: the model's folder and, where it has one, its manifest; or nothing.

    Raises:
        HalosError: files for a kind that takes none, or none for one that needs them.
    """
    if bool(files) != (kind == "reward_model"):
        says = "takes none" if files else "needs its model's folder"
        raise HalosError(f"{what} is of kind {kind}: --reward-model {says}")
    if not files:
        return None
    from halos.scoring.reward_model import RewardModel

    folder, *manifest = files
    run = json.loads(manifest[0].read_text())["config"] if manifest else {}
    how = {key: run[key] for key in ("precision", "attention") if key in run}
    return RewardModel(folder, tokens_per_microbatch=tokens_per_microbatch, **how)
