"""Scores of a store's responses by a reward model from elsewhere, which reads them with a tokenizer of its own."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import numpy as np

from halos.data.feedback import Feedback, Turn
from halos.errors import HalosError
from halos.files import hash_file
from halos.pretrained import read_config, read_tokenizer
from halos.reference.cache import SCORES, expected_hashes
from halos.reference.compute import WINDOW, Done
from halos.scoring.reward_model import open_reward_model
from halos.tokens.builder import StoreBuilder
from halos.tokens.positions import Positions
from halos.tokens.settings import StoreSlice
from halos.tokens.store import SPLITS, Store, read_splits
from halos.tokens.tally import Tally
from halos.tokens.template import Template


def score(
    config: Path,
    train: Path,
    validation: Path,
    model: Path,
    store: Path,
    reward_model: Path,
    output: Path,
    tokens_per_microbatch: int = 16384,
) -> None:
    """Score the responses of a sequence store by a reward model of `models:`.

    Prompts and whole responses are read as texts, with the reward model's own chat template and tokenizer. The output
    is a file like those of `reference`: one float32 score for each real response, in the order of the store's rows. A
    pass that was stopped resumes after its last window. Of several processes each scores a share.

    Args:
        config: config.yaml of the store's folder.
        train: feedback records of the train split that the store was made from.
        validation: feedback records of the validation split.
        model: model folder that the store was made with, for its tokenizer and chat template.
        store: sequence store.
        reward_model: folder of the reward model, with model/ and manifest.json.
        output: file to write, safetensors.
        tokens_per_microbatch: tokens of one forward pass of the reward model, padding included.

    Raises:
        HalosError: an input is missing or was replaced, the store was made from other records, the folder holds no
            reward model, or a response cannot be scored.
    """
    sequences = Store(store)
    made_from = {**expected_hashes(reward_model, sequences), "first": "0", "part": SCORES}
    texts = _texts(config, train, validation, model, sequences)
    scorer = open_reward_model([reward_model / "model", reward_model / "manifest.json"], tokens_per_microbatch)
    read, unreadable = scorer.read([prompt for prompt, _ in texts], [response for _, response in texts])
    if unreadable:
        _refuse(scorer.missing(unreadable, [None if ids is None else 0.0 for ids in read]))
    offsets = np.arange(len(read) + 1)
    depends_on = {**made_from, "manifest": hash_file(reward_model / "manifest.json")}  # its template and settings
    done = Done(output, depends_on, offsets, scorer.processes)
    for start in range(done.rows, len(read), WINDOW):
        scores = scorer.rewards_of(read[start : start + WINDOW])
        if None in scores:
            _refuse(scorer.missing(unreadable, scores))
        done.add([np.array([score], np.float32) for score in scores])
    done.finish(made_from)


def _refuse(missing: str) -> NoReturn:
    raise HalosError(f"{missing}; leave them out of the dataset, or name another reward model")


class _Texts(StoreBuilder):
    """A builder of a store that only keeps the prompts and responses, in the order of the store's rows."""

    found: list[tuple[list[Turn], str]]
    lengths: list[tuple[int, int]]

    def _add_record(
        self, split: str, record: Feedback, prompt: list[int], responses: list[list[int]], tally: Tally
    ) -> None:
        self.found += [(record.prompt, text) for text in record.responses]
        self.lengths += [(len(prompt), len(ids)) for ids in responses]


def _texts(config: Path, train: Path, validation: Path, model: Path, store: Store) -> list[tuple[list[Turn], str]]:
    """(prompt, response) of each row of a store with a real response.

    Raises:
        HalosError: the records are not those that the store was made from.
    """
    settings, model_config = StoreSlice.read(config), read_config(model)
    template = Template(read_tokenizer(model), settings.split_special_tokens)
    limit = Positions.of(model_config).prompt_limit(settings.max_prompt_length, template.control)
    records = read_splits(settings.eval_examples, train, validation)
    with TemporaryDirectory() as folder:
        builder = _Texts(Path(folder), template, settings, limit, model_config.get_text_config().vocab_size)
        builder.found, builder.lengths = [], []
        for split in SPLITS:
            builder.add(split, records[split])
    rows = np.arange(store.n_responses)
    stored = [*zip(store.lengths[rows, 0].tolist(), store.full_lengths(rows).tolist(), strict=True)]
    if builder.lengths != stored:
        raise HalosError(f"{store.folder} was made from other records or another tokenizer: delete it, and run "
                         "snakemake again")  # fmt: skip
    return builder.found
