"""The views of a sequence store: which roles an example of each has, and which columns its index table has."""

from __future__ import annotations

import pyarrow as pa

COLUMNS = {
    "sft": {"response": "sequence"},
    "paired": {"chosen": "chosen", "rejected": "rejected"},
    "unpaired": {"response": "sequence", "mismatched": "mismatched"},
    "grouped": {"response": "sequences"},
}
"""view -> {role: the column of its sequences}."""
VIEWS = {
    "sft": pa.schema({"sequence": pa.int32()}),
    "paired": pa.schema({"chosen": pa.int32(), "rejected": pa.int32()}),
    "unpaired": pa.schema(
        {"sequence": pa.int32(), "desirable": pa.bool_(), "score": pa.float64(), "mismatched": pa.int32()}
    ),
    "grouped": pa.schema({"sequences": pa.list_(pa.int32()), "scores": pa.list_(pa.float64())}),
}
"""Each view's index table. That of `unpaired` also serves `scored`."""
HAVING = {"unpaired": "desirable", "scored": "score"}
"""The column of the unpaired table in which a row of the view has a value."""
WANTS = {
    "sft": "give its records a target, or leave out losses that imitate one",
    "paired": "give its records pairs, or use a loss that takes unpaired feedback",
    "unpaired": "give its responses desirable labels, label them by their scores (label_by), or use another loss",
    "scored": "give its records scores, or use what reads labels (no label_by, another loss)",
    "grouped": "give its records scores, or use another loss",
}
ROLES = {"sft": ("response",), "paired": ("chosen", "rejected"), "unpaired": ("response",), "grouped": ("response",)}
"""The sequences of one example of each view; a grouped example has several responses. An unpaired example also has a
`mismatched` one: its prompt with the response of another."""
