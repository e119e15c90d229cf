"""`tokenize`, the verb that makes a sequence store from a dataset's records and a model's tokenizer."""

from __future__ import annotations

from pathlib import Path

from halos.files import hash_content, hash_each, hash_files, whole
from halos.tokens.builder import StoreBuilder
from halos.tokens.report import StoreMeta, TokensReport
from halos.tokens.settings import StoreSlice
from halos.tokens.store import SPLITS, read_splits
from halos.tokens.template import Template


def tokenize(config: Path, train: Path, test: Path, model: Path, output: Path, report: Path) -> None:
    """Make the sequence store of a dataset and a model.

    The store holds the whole train split, and a fixed subset of the test split for evaluation during training.

    Args:
        config: config.yaml of the store's folder.
        train: feedback records of the train split.
        test: feedback records of the test split.
        model: model folder, for its tokenizer and chat template.
        output: sequence store to write, a folder.
        report: JSON report to write: lengths, truncations and drops of each split.

    Raises:
        HalosError: an input is missing or malformed, or the model's chat template cannot be used.
    """
    from transformers import AutoTokenizer

    settings = StoreSlice.read(config)
    template = Template(AutoTokenizer.from_pretrained(model))
    with whole(output) as folder:
        folder.mkdir()
        builder = StoreBuilder(folder, template, settings)
        records = read_splits(settings.eval_examples, train, test)
        splits = {split: builder.add(split, records[split]) for split in SPLITS}
        counts = builder.finish()
        files = hash_each(folder)
        meta = StoreMeta(
            **settings.model_dump(exclude={"plugins"}),
            **counts,
            template=template.hash,
            data={split: hash_files([path]) for split, path in zip(SPLITS, (train, test), strict=True)},
            files=files,
            hash=hash_content(files),
        )
        meta.write(folder / "meta.json")
    TokensReport(**meta.model_dump(), train=splits["train"], test=splits["test"]).write(report)
    for split, counted in splits.items():
        numbers = counted.model_dump(exclude={"dropped", "length_quantiles"})
        print(f"{split}: " + ", ".join(f"{name} {number}" for name, number in numbers.items()))
        for reason, number in counted.dropped.items():
            print(f"{split}: dropped {number} ({reason})")
