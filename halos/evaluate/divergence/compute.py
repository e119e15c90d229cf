"""Log-probabilities of a cell's own samples, under it and under its reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from halos.errors import HalosError
from halos.evaluate.divergence.divergence import Divergence, ResponseLogps
from halos.forward.budget import cut, pack
from halos.manifest import Manifest
from halos.models.load import freeze, load
from halos.reference.compute import check_vocabulary
from halos.reference.settings import ReferenceSlice
from halos.sample.prompter import Prompter
from halos.sample.samples import Sample, read_samples
from halos.sample.settings import SamplerSlice
from halos.seeds import derive
from halos.tokens.report import StoreMeta


def divergence(
    config: Path,
    model: Path,
    manifest: Path,
    reference: Path,
    reference_manifest: Path,
    store: Path,
    samples: Path,
    output: Path,
    prompts: int = 64,
    tokens_per_microbatch: int = 16384,
    vocabulary: Sequence[Path] = (),
) -> None:
    """Compute the log-probabilities of a cell's samples under its model and under its reference.

    Responses are the token ids that the model generated. Each model reads the prompts by its own chat template. Both
    compute as the cell's trainings do, one after the other.

    Args:
        config: config.yaml of the cell, for attention and precision.
        model: model folder.
        manifest: its manifest.
        reference: model folder of its reference.
        reference_manifest: manifest of that.
        store: sequence store of the cell, whose limit on the length of prompts applies here too.
        samples: samples of the model, JSON lines.
        output: file to write, JSON.
        prompts: the most prompts whose samples are looked at, chosen by a hash.
        tokens_per_microbatch: tokens of one forward pass, padding included.
        vocabulary: the policy's base model, where the reference is another model: their tokenizers must be the same.

    Raises:
        HalosError: a file is missing, no prompt is to be looked at, the samples lack the ids of their tokens or are of
            another tokenizer, or the reference has another vocabulary.
    """
    if prompts < 1:
        raise HalosError(f"--prompts is {prompts}: give the number of prompts to look at")
    for other in vocabulary:
        check_vocabulary(reference, other)
    made, of_reference = Manifest.read(manifest), Manifest.read(reference_manifest)
    settings, seed = ReferenceSlice.read(config), SamplerSlice.read(config).seed
    meta = StoreMeta.read(store / "meta.json")
    chosen = choose(read_samples(samples), prompts)
    prompters = [Prompter(of, seed, meta.max_prompt_length, meta.split_special_tokens) for of in (model, reference)]
    left_out: Counter[str] = Counter()
    if foreign := [s for s in chosen if s.template is not None and s.template != prompters[0].template.hash]:
        raise HalosError(
            f"{len(foreign)} samples of {samples} are of another tokenizer or chat template than {model} has; delete "
            "the file and sample again"
        )
    known = [sample for sample in chosen if sample.response_ids]
    left_out["without token ids"] = len(chosen) - len(known)
    both = [_prompts(prompter, known) for prompter in prompters]
    fits = [all(ids is not None for ids in pair) for pair in zip(*both, strict=True)]
    left_out["a prompt that is too long"] = fits.count(False)
    kept = [sample for sample, fit in zip(known, fits, strict=True) if fit]
    if not kept:
        raise HalosError(f"{samples} has no response whose token ids are known; delete the file and sample again")
    values = []
    for folder, ids in zip((model, reference), both, strict=True):
        texts = [(of_prompt, s.response_ids) for of_prompt, s, fit in zip(ids, known, fits, strict=True) if fit]
        values.append(log_probabilities(folder, texts, settings, tokens_per_microbatch))
    Divergence(
        weights=made.weights,
        reference_weights=of_reference.weights,
        temperature=kept[0].temperature,
        top_p=kept[0].top_p,
        prompts=len({sample.prompt_id for sample in chosen}),
        left_out={why: number for why, number in left_out.items() if number},
        responses=tuple(
            ResponseLogps(
                prompt_id=s.prompt_id, sample=s.sample, tokens=len(s.response_ids or ()), policy=p, reference=r
            )
            for s, p, r in zip(kept, *values, strict=True)
        ),
    ).write(output)


def choose(samples: Sequence[Sample], prompts: int) -> list[Sample]:
    """The samples of the first prompts by a hash of their ids, in their order."""
    ids = sorted({s.prompt_id for s in samples}, key=lambda prompt: derive(0, "divergence", prompt))[:prompts]
    return [sample for sample in samples if sample.prompt_id in set(ids)]


def _prompts(prompter: Prompter, samples: Sequence[Sample]) -> list[list[int] | None]:
    turns = [sample.prompt or [] for sample in samples]
    return [p.ids for p in prompter.template.prompts(turns, prompter.limit, [sample.tools for sample in samples])]


def log_probabilities(
    folder: Path, texts: Sequence[tuple[Any, Any]], settings: ReferenceSlice, budget: int
) -> list[float]:
    """The log-probability of each response, the sum over its tokens in nats.

    Args:
        folder: model folder.
        texts: (prompt, response) in token ids.
        settings: how the model computes.
        budget: tokens of one forward pass, padding included.

    Raises:
        HalosError: the model cannot be run, or a value is not finite.
    """
    import torch

    from halos.distributed.accelerator import accelerator_for
    from halos.distributed.sharding import prepare_frozen
    from halos.forward.layout import Text
    from halos.forward.microbatch import of_texts
    from halos.forward.networks import ResponseLogps as Network
    from halos.forward.packable import Trial, check_finite

    accelerator = accelerator_for(settings.precision)
    network: Any = load(folder, settings.attention)
    rows = network.get_input_embeddings().weight.shape[0]
    keys: dict[tuple[int, ...], int] = {}
    sequences = [Text(keys.setdefault(tuple(p), len(keys)), np.array(p), np.array(r)) for p, r in texts]
    if any(max(text.tail) >= rows for text in sequences):
        raise HalosError(f"responses have tokens that {folder} does not know: its tokenizer is another one")
    lengths = np.array([(len(text.prompt), len(text.tail)) for text in sequences])
    module = Network(network)
    packed = Trial.of(module, int(lengths.sum(1).max())).unpacked_because is None
    freeze(network, settings.precision)
    prepared = prepare_frozen(module, accelerator).eval()
    prompts = np.array([text.key for text in sequences])
    microbatches = pack(prompts, lengths, budget) if packed else cut(lengths.sum(1), budget)
    sums = np.zeros(len(sequences))
    for members in tqdm(microbatches, desc=f"log-probabilities under {'/'.join(folder.parts[-3:-1])}", mininterval=1):
        batch = of_texts([sequences[k] for k in members], packed).to(accelerator.device)
        with torch.no_grad():
            logps = prepared(batch)["logps"]
        check_finite(network, {"logps": logps})
        sums[members] = logps.double().sum(1).cpu().numpy()
    return [float(value) for value in sums]
