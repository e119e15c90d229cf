"""`tokenize`, the verb that makes a sequence store from a dataset's records and a model's tokenizer."""

from __future__ import annotations

from pathlib import Path

from halos.files import hash_content, hash_each, hash_files, whole
from halos.pretrained import read_config, read_tokenizer
from halos.tokens.builder import StoreBuilder
from halos.tokens.notes import balance, notes
from halos.tokens.positions import Positions
from halos.tokens.report import StoreMeta, TokensReport
from halos.tokens.settings import StoreSlice
from halos.tokens.store import SPLITS, Store, labels_of, read_splits
from halos.tokens.template import Template


def tokenize(config: Path, train: Path, validation: Path, model: Path, output: Path, report: Path) -> None:
    """Make the sequence store of a dataset and a model.

    The store holds the whole train split, and a fixed subset of the validation split for evaluation during
    training.

    Args:
        config: config.yaml of the store's folder.
        train: feedback records of the train split.
        validation: feedback records of the validation split.
        model: model folder, for its tokenizer and chat template.
        output: sequence store to write, a folder.
        report: JSON report to write: lengths, truncations and drops of each split.

    Raises:
        HalosError: an input is missing or malformed, the model's chat template cannot be used, the model has no
            positions for max_length, or nothing is left of a split.
    """
    settings, model_config = StoreSlice.read(config), read_config(model)
    positions = Positions.of(model_config)
    if warning := positions.check(settings.model, settings.dataset, settings.max_length):
        print(warning)
    template = Template(read_tokenizer(model), settings.split_special_tokens)
    limit = positions.prompt_limit(settings.max_prompt_length, template.control)
    vocabulary = model_config.get_text_config().vocab_size
    with whole(output) as folder:
        folder.mkdir()
        builder = StoreBuilder(folder, template, settings, limit, vocabulary)
        records = read_splits(settings.eval_examples, train, validation)
        splits = {split: builder.add(split, records[split]) for split in SPLITS}
        counts = builder.finish()
        files = hash_each(folder)
        meta = StoreMeta(
            **settings.model_dump(exclude={"plugins", "local", "views"}),
            **counts,
            dropped={split: counted.dropped for split, counted in splits.items()},
            template=template.hash,
            data={split: hash_files([path]) for split, path in zip(SPLITS, (train, validation), strict=True)},
            files=files,
            hash=hash_content(files),
        )
        meta.write(folder / "meta.json")
    TokensReport(**meta.model_dump(), train=splits["train"], validation=splits["validation"]).write(report)
    for split, counted in splits.items():
        print(*notes(split, counted), sep="\n")
    if line := balance(*labels_of(Store(output))):
        print(line)
