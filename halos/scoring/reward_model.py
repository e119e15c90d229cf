"""Reward models that were trained here or elsewhere, as scorers of responses."""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from halos.data.feedback import Turn
from halos.errors import HalosError
from halos.manifest import Manifest
from halos.models.attention import AUTO
from halos.models.rewards import RewardLogit, check_reward_model, is_gated
from halos.pretrained import read_tokenizer
from halos.scoring.scores import Score
from halos.tokens.positions import Positions

if TYPE_CHECKING:
    from torch import Tensor

    from halos.forward.grouping import Grouping

log = logging.getLogger(__name__)

EMPTY, LONG = "empty", "long"
"""Reasons why a response is not read, beside those of the chat template."""


class RewardModel:
    """A saved reward model: prompts and responses in, scores out.

    Args:
        folder: an `AutoModelForSequenceClassification` with one or two labels, or a model of ArmoRM's kind (see
            halos/scoring/gated.py), with its tokenizer and chat template: the `model/` of a run that trained one, or
            one from elsewhere.
        precision: compute type on an accelerator, bf16 or fp32; on the CPU it is float32.
        attention: attention implementation, or `auto`.
        tokens_per_microbatch: tokens of one forward pass, padding included.
        logit: the reward of a classifier with two labels, see `reward`.

    Attributes:
        positions: the longest sequence that the model can read, in tokens; None when it names no limit.
        grouping: which sequences are run side by side.

    Raises:
        HalosError: the folder holds no such model, or its scores are not finite.
    """

    def __init__(
        self,
        folder: Path,
        precision: str = "bf16",
        attention: str = AUTO,
        tokens_per_microbatch: int = 16384,
        logit: RewardLogit = "second",
    ) -> None:
        import torch
        from accelerate import PartialState

        from halos.distributed.accelerator import check_processes
        from halos.models.load import load
        from halos.scoring.gated import load_gated
        from halos.tokens.template import Template

        check_reward_model(folder)
        try:
            self.template = Template(read_tokenizer(folder))
            model: Any = (
                load_gated(folder, attention, self.template)
                if is_gated(folder)
                else load(folder, attention, score=True, own_labels=True)
            )
        except (OSError, ValueError) as error:
            raise HalosError(f"cannot load the reward model in {folder}: {' '.join(str(error).split())}") from error
        self.folder, self.budget, self.logit = folder, tokens_per_microbatch, logit
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
        self.positions = Positions.of(config).limit
        self.grouping = self._tried()

    def score(self, prompts: list[list[Turn]], responses: list[str]) -> list[Score]:
        """The reward of each response to its prompt, in their order, as the criterion `reward`."""
        failed = Score(problem="no score of the reward model: empty, too long for it, or not finite")
        rewards = self.rewards(prompts, responses)
        return [failed if reward is None else Score({"reward": reward}) for reward in rewards]

    def rewards(self, prompts: list[list[Turn]], responses: list[str]) -> list[float | None]:
        """The reward of each response to its prompt, in their order; higher is better, on the model's own scale.

        An empty response, one that the chat template cannot show with its prompt, a sequence that is longer than the
        model's positions, or a reward that is not finite gives None; one warning counts them.
        """
        sequences, unreadable = self.read(prompts, responses)
        rewards = self.rewards_of(sequences)
        if None in rewards:
            log.warning(self.missing(unreadable, rewards))
        return rewards

    def read(
        self, prompts: list[list[Turn]], responses: list[str]
    ) -> tuple[list[tuple[int, ...] | None], Counter[str]]:
        """The token ids of each prompt with its response, None for those that cannot be scored, and the reasons.

        A sequence is tokenized as in the sequence store, but never truncated.
        """
        heads = self.template.prompts(prompts, max_length=sys.maxsize) if prompts else []
        tails = self.template.responses(responses) if responses else []
        sequences: list[tuple[int, ...] | None] = []
        unreadable: Counter[str] = Counter()
        for text, head, tail in zip(responses, heads, tails, strict=True):
            ids = (*(head.ids or ()), *(tail.ids or ()))
            problem = EMPTY if not text.strip() else head.problem or tail.problem
            if problem is None and len(ids) > (self.positions or sys.maxsize):
                problem = LONG
            unreadable.update([] if problem is None else [problem])
            sequences.append(ids if problem is None else None)
        return sequences, unreadable

    def rewards_of(self, sequences: Sequence[tuple[int, ...] | None]) -> list[float | None]:
        """The reward of each sequence that `read` has given, in their order; None where it is not finite.

        A reward depends on nothing but its own sequence. Of several processes, which all get the same sequences, each
        scores a share, and all return all rewards.
        """
        by_sequence = self._scores(sorted({s for s in sequences if s is not None}))
        return [None if s is None else by_sequence.get(s) for s in sequences]

    def missing(self, unreadable: Counter[str], rewards: Sequence[float | None]) -> str:
        """What to say about rewards that are missing.

        Args:
            unreadable: the reasons that `read` has given.
            rewards: all rewards, None where one is missing.
        """
        failed = rewards.count(None)
        others = "".join(f", {n}: {problem}" for problem, n in unreadable.items() if problem not in (EMPTY, LONG))
        return (
            f"{failed} of {len(rewards)} responses get no score of the reward model in {self.folder}: "
            f"{unreadable[EMPTY]} are empty, {unreadable[LONG]} are too long for its {self.positions} positions, "
            f"{failed - unreadable.total()} have no finite score{others}"
        )

    def _scores(self, sequences: list[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
        """{sequence: score} of those with a finite score; this process computes a share and gathers the others'."""
        import numpy as np
        from accelerate.utils import gather_object

        from halos.forward.budget import cut

        scored: dict[tuple[int, ...], float] = {}
        lengths = np.array([len(s) for s in sequences], dtype=np.int64)
        rank, world = self.processes.process_index, self.processes.num_processes
        parts = cut(lengths, self.budget, world)[rank::world] if sequences else []
        bar = tqdm(total=sum(map(len, parts)), desc="score", unit=" responses", mininterval=1, disable=rank > 0)
        for part in filter(len, parts):
            for members in self.grouping.groups(lengths[part]):
                group = part[members]
                scores = self._batch([sequences[i] for i in group])
                scored |= {sequences[i]: x for i, x in zip(group, scores, strict=True) if math.isfinite(x)}
            bar.update(len(part))
        bar.close()
        return {sequence: score for share in gather_object([scored]) for sequence, score in share.items()}

    def _batch(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The scores of sequences side by side, padded on the right."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from halos.forward.grouping import forget_lengths

        forget_lengths(self.model)
        rows = [torch.tensor(sequence, device=self.device) for sequence in sequences]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.padding)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(input_ids=ids, attention_mask=mask).logits
            scores: list[float] = reward(logits.reshape(len(ids), -1), self.logit).tolist()
        return scores

    def _tried(self) -> Grouping:
        """The grouping in which a few short sequences have the scores that each has alone."""
        import numpy as np
        import torch

        from halos.forward.grouping import ALONE, EQUAL_LENGTHS, Grouping
        from halos.forward.packable import check_finite, trial_ids

        ids, end = trial_ids(self.model).tolist(), getattr(self.model, "prompt_end", [])
        texts = [[ids[k], *end, *ids[k + 1 : k + length]] for k, length in enumerate((9, 9, 12))]
        alone = np.array([self._batch([text])[0] for text in texts])
        check_finite(self.model, {"scores": torch.from_numpy(alone)})
        context = abs(self._batch([[ids[-8], *end, *ids[-7:], texts[0][-1]]])[0] - alone[0])
        rounding = 8 * torch.finfo(torch.bfloat16 if self.bf16 else torch.float32).eps * np.abs(alone).max()
        for grouping in (Grouping.of(self.model, sys.maxsize), EQUAL_LENGTHS):
            together = alone * np.nan
            for members in grouping.groups(np.array([len(text) for text in texts])):
                together[members] = self._batch([texts[k] for k in members])
            if np.abs(together - alone).max() <= max(1e-4 * context, rounding):
                return grouping
        return ALONE


def reward(logits: Tensor, logit: RewardLogit) -> Tensor:
    """The rewards of sequences from a classifier's logits.

    HALOs trains Bradley-Terry models as classifiers with two labels, and scores by the second one's logit
    (train/label.py: `outputs.logits[:, 1]`).

    Args:
        logits: (B, 1), the reward itself, or (B, 2), of the worse and the better label.
        logit: of two labels, `second` for the second one's logit, `difference` for that minus the first one's.

    Returns:
        (B,) float32, on the model's own scale; higher is better.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits[:, 1] - logits[:, 0] if logit == "difference" else logits[:, 1]


def open_reward_model(files: Sequence[Path], tokens_per_microbatch: int) -> RewardModel:
    """A reward model, which computes as in the run that trained it where the run's manifest is given.

    Args:
        files: the model's folder and, if it has one, its manifest, whose config tells attention, precision and what
            of two labels is the reward.
        tokens_per_microbatch: tokens of one forward pass, padding included.

    Raises:
        HalosError: the folder holds no reward model.
    """
    from halos.sample.backends import LOADS

    folder, *manifests = files
    if not manifests:
        check_reward_model(folder, trusted=False)
        print(LOADS.format(folder), file=sys.stderr)
        return RewardModel(folder, tokens_per_microbatch=tokens_per_microbatch)
    manifest = Manifest.read(manifests[0])
    manifest.check_links(folder)
    print(LOADS.format(folder), file=sys.stderr)
    config = manifest.config
    logit = config.get("reward_logit", "second")
    return RewardModel(folder, config["precision"], config["attention"], tokens_per_microbatch, logit)
