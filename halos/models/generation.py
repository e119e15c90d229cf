"""Generation configs as models are saved with them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halos.files import read_json

if TYPE_CHECKING:
    from transformers import GenerationConfig

log = logging.getLogger(__name__)

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Parameters of sampling. transformers refuses a config that has any without `do_sample`, as many are saved."""
SEARCH = ("num_return_sequences", "num_beams", "num_beam_groups", "early_stopping", "length_penalty",
          "diversity_penalty", "penalty_alpha", "constraints", "force_words_ids", "return_dict_in_generate",
          "output_attentions", "output_hidden_states", "output_scores", "output_logits", "cache_implementation",
          "use_cache")  # fmt: skip
"""Other ways to search, several answers for one prompt, and other shapes of the output: a caller's choice."""
IDS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")


def _real(ids: Any) -> Any:
    """The ids of tokens among what is saved as such: -1 is none, and a text is none."""
    if isinstance(ids, list):
        return [number for number in map(_real, ids) if number is not None] or None
    return ids if isinstance(ids, int) and ids >= 0 else None


def read_generation_config(folder: Path) -> GenerationConfig:
    """The generation config of a model folder, without what transformers could neither load nor save.

    Args:
        folder: the model's folder; without a generation_config.json it has the default one.

    Raises:
        HalosError: the file is not valid JSON.
    """
    from transformers import GenerationConfig

    file = folder / "generation_config.json"
    saved: dict[str, Any] = read_json(file) if file.is_file() else {}
    dropped = {*SEARCH, *(() if saved.get("do_sample") else ("do_sample", *SAMPLING))}
    fields = {name: value for name, value in saved.items() if name not in dropped}
    fields |= {name: _real(fields[name]) for name in IDS if name in fields}
    try:
        config = GenerationConfig(**fields)
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        why = " ".join(str(error).split())
        log.warning("of %s only the ids of tokens are used, because transformers refuses it: %s", file, why)
        config = GenerationConfig(**{name: value for name, value in fields.items() if name in IDS})
    return config
