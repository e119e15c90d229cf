"""The inputs of a run: opened, hashed, and checked against each other before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halos.errors import HalosError
from halos.files import hash_file, hash_files, hash_weights
from halos.losses import Loss
from halos.manifest import VALUE_HEAD, Manifest
from halos.reference.cache import Reference, expected_hashes, parts_for, parts_in, read_scores
from halos.tokens.positions import Positions
from halos.tokens.selection import select
from halos.tokens.store import Store, no_margins
from halos.train.batches import Examples
from halos.train.kept import kept_state
from halos.train.settings import LENGTH
from halos.train.slices import RunSlice
from halos.train.stage import Stage


@dataclass(frozen=True)
class Inputs:
    """Everything that a run reads.

    Attributes:
        settings: the run's slice of the catalogue.
        stage: the stage to train.
        loss: the stage's loss with its hyperparameters.
        parent: model folder of the parent.
        store: sequence store of the dataset and model.
        reference: cached log-probabilities of the reference; None for a live reference, or a loss without one.
        scores: (responses,) float32 scores of a reward model, by sequence row; None where the data's own are read.
        resumed: folder of the finished run that this one goes on from; None where it begins at its parent.
        before: kept state of the round before, whose optimiser goes on; None where the optimiser begins anew.
        value_head: file of the parent's value head; None where the loss or the parent has none.
        hashes: sha256 of each input: `weights` of the parent, `store`, `template`, and where they are read `scores`,
            `adapters`, `value_head`, `reference` (weights of a reference that is not the parent) and `resumed` (weights
            at the end of the run that this one goes on from).
    """

    settings: RunSlice
    stage: Stage
    loss: Loss
    parent: Path
    store: Store
    reference: Reference | None
    scores: np.ndarray | None
    value_head: Path | None
    resumed: Path | None
    before: Path | None
    hashes: dict[str, str]

    @classmethod
    def open(
        cls,
        config: Path,
        parent: Path,
        store: Path,
        reference: Sequence[Path] = (),
        reference_of: Path | None = None,
        scores: Sequence[Path] = (),
        resumed: Sequence[Path] = (),
    ) -> Inputs:
        """Open and check the inputs of a run; the arguments are those of `halos.train.run.train`.

        Raises:
            HalosError: an input is missing or stale, does not fit the model, or is not what the stage reads.
        """
        settings = RunSlice.read(config)
        stage = settings.stage
        if stage is None:
            raise HalosError(f"{config} belongs to a base model, which is not trained: give the config.yaml of a run")
        loss = stage.make_loss()
        sequences = Store(store)
        frozen = expected_hashes(reference_of or parent, sequences)
        _check_files(stage, loss, reference, scores)
        hashes = expected_hashes(parent, sequences)
        if scores:
            hashes["scores"] = hash_files(scores)
        if stage.lora is not None and stage.lora.path is not None:
            hashes["adapters"] = hash_weights(Path(stage.lora.path))
        if reference and frozen["weights"] != hashes["weights"]:
            hashes["reference"] = frozen["weights"]
        head = _value_head(parent) if loss.head == "value" else None
        if head is not None:
            hashes["value_head"] = hash_file(head)
        run = _resumed(settings, stage, hashes, resumed)
        if run is not None:
            hashes["resumed"] = Manifest.read(run / "manifest.json").weights
        inputs = cls(
            settings, stage, loss, parent / "model", sequences,
            reference=Reference(list(reference), frozen) if reference else None,
            scores=read_scores(scores[0], sequences) if scores else None,
            value_head=head,
            resumed=run,
            before=kept_state(parent, parent.parent) if settings.continues else None,  # all rounds have to run again
            hashes=hashes,
        )  # fmt: skip
        inputs._check_lengths()
        inputs._check_margins()
        inputs._check_validation()
        return inputs

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, a control token included."""
        return int(self.store.lengths.sum(-1).max()) + bool(self.loss.control)

    def examples(self, split: str, control: Mapping[str, int], packed: bool) -> Examples:
        """The examples of a split that the stage selects.

        Args:
            split: train or validation.
            control: role -> id of the token before that role's responses.
            packed: whether microbatches are packed rows.
        """
        table = select(self.store, split, self.stage.reads, self.stage.selection, self.settings.seed)
        return Examples(self.store, table, self.loss.view, self.reference, self.scores, control, packed)

    def _check_lengths(self) -> None:
        positions = Positions.read(self.parent)
        if positions.fixed and positions.limit is not None and self.longest > positions.limit:
            raise HalosError(
                f"a sequence of {self.longest} tokens does not fit the model's {positions.limit} positions: lower the "
                f"dataset's max_length"
            )

    def _check_margins(self) -> None:
        if self.loss.needs_margins and not self.store.has_margins:
            raise HalosError(no_margins(self.store.meta.dataset, [f"the loss {self.stage.loss_name}"]))

    def _check_validation(self) -> None:
        if self.stage.early_stopping is not None and "validation" not in self.store.splits:
            raise HalosError(
                f"early_stopping reads evaluations, and dataset {self.store.meta.dataset} has no validation prompts: "
                f"set its validation_prompts, or take out early_stopping"
            )


def _resumed(settings: RunSlice, stage: Stage, hashes: dict[str, str], manifests: Sequence[Path]) -> Path | None:
    """The folder of the run that a stage with `resume_from` goes on from.

    Raises:
        HalosError: it is not given, kept no state, or was another training.
    """
    if len(manifests) != (stage.resume_from is not None):
        raise HalosError(
            f"the stage has no resume_from and got {len(manifests)} runs to go on from: leave out --resumed"
            if stage.resume_from is None
            else f"the stage goes on from {stage.resume_from} and got {len(manifests)} runs: pass its manifest.json by "
            f"--resumed"
        )
    if not manifests:
        return None
    run, manifest = manifests[0].parent, Manifest.read(manifests[0])
    kept_state(run)
    then = {k: v for k, v in manifest.inputs.items() if k != "resumed"}
    differing = sorted(name for name in {*then, *hashes} if then.get(name) != hashes.get(name))
    own, other = settings.identity, RunSlice.model_validate(manifest.config).identity
    for content in (own, other):
        content["stage"] = {key: value for key, value in content["stage"].items() if key not in LENGTH}
    differing += sorted(k for k in {*own, *other} - {"method"} if own.get(k) != other.get(k))
    if differing:
        raise HalosError(f"{run} was trained with other {' and '.join(differing)}: it cannot be gone on from")
    return run


def _value_head(parent: Path) -> Path | None:
    """The file of a finished run's value head; None where its stage had none.

    Raises:
        HalosError: it is not what the run left.
    """
    then, file = Manifest.read(parent / "manifest.json").value_head, parent / VALUE_HEAD
    if then is None:
        return None
    if not file.is_file() or hash_file(file) != then:
        raise HalosError(
            f"{file}, the value head of the run before, {'was replaced' if file.is_file() else 'is gone'}: delete "
            f"{parent} and run snakemake again"
        )
    return file


def _check_files(stage: Stage, loss: Loss, reference: Sequence[Path], scores: Sequence[Path]) -> None:
    """Refuse other parts of the reference, and more or fewer files of a reward model, than the stage reads."""
    if reference and stage.sync_every:
        raise HalosError(
            "the reference of this stage is live (humanline or sync_reference), and a cached one would be stale "
            "after the first step: give no --reference"
        )
    parts = parts_for(loss, live=stage.sync_every is not None)
    given = [part for file in reference for part in parts_in(file)]
    if sorted(given) != sorted(parts):
        needs = f"the reference's {' and '.join(parts)}" if parts else "no reference"
        raise HalosError(
            f"the loss {stage.loss_name} needs {needs}, and got {' and '.join(given) or 'none'}: "
            f"{'pass these by' if parts else 'leave out'} --reference"
        )
    if len(scores) != (stage.reward_model is not None):
        raise HalosError(
            f"the stage has no reward_model and got {len(scores)} files of scores: leave out --scores"
            if stage.reward_model is None
            else f"the stage reads the scores of {stage.reward_model} and got {len(scores)} files: pass one by --scores"
        )
