"""Datasets by name, one file each, and the verifiers that come with them. Importing this package registers them.

A source is a function `(split, **options)` that yields the records of "train" or "test", and a `Drop` for each row that
it leaves out. A source of your own is one such function with `@SOURCES.register("name")` in a plugin.

Options that every published dataset has:

    path           a file in the layout of the hub's (JSON, JSON Lines, either as .gz, or parquet), or one a split;
                   without it the dataset is loaded from the hub, once
    test_fraction  share of the prompts that are the test split, where one file holds both
    revision       commit on the hub
    limit          the first so many records

All raise HalosError when the hub cannot be reached, or a file is missing, unreadable or of another layout. Text is kept
as it is published, white space included.
"""

from halos.data.sources import conversations as conversations
from halos.data.sources import hh as hh
from halos.data.sources import local as local
from halos.data.sources import oasst as oasst
from halos.data.sources import safe_rlhf as safe_rlhf
from halos.data.sources import shp as shp
from halos.data.sources import toy as toy
from halos.data.sources import ultrafeedback as ultrafeedback
