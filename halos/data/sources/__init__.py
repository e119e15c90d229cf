"""Sources: datasets by name, one file each, and their verifiers. Importing this package registers them.

A source is a function `(split, **options)` that yields the records of "train" or "test", and a `Drop` for each row that
it leaves out. To add one, decorate such a function with `@SOURCES.register("name")`, in a plugin or in a file here. One
that has other splits names them as its attribute `splits`; of a source without "validation", that split is cut from
"train".

Options that every published dataset has:

    path           local files with the columns that the dataset has on the hub, of any format of docs/data.md: a file,
                   a list, a pattern or a folder, or these for each split; without it the dataset is loaded from the
                   hub, once
    test_fraction  fraction of the prompts that is the test split, where one file holds all
    revision       commit on the hub
    limit          number of records to read; by default all

All raise HalosError when the hub cannot be reached, or a file is missing, cannot be read or lacks a column. Text is
kept as published, white space included.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
