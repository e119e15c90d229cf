"""The kinds of reward model: classifiers with one or two labels, and ArmoRM's, which weighs several objectives."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from halos.errors import HalosError
from halos.files import read_json
from halos.pretrained import TRUSTED, trusts

CLASSIFIER = "AutoModelForSequenceClassification"
"""transformers' name for classifiers, by which a config also names code for one."""
GATED = "ForRewardModelWithGating"
"""End of the name of ArmoRM's class in its config.json."""
RewardLogit = Literal["second", "difference"]
"""Of a classifier with two labels, the reward: the second one's logit, or that minus the first one's."""


def _classes(folder: Path) -> list[str]:
    """The names of classes that a folder's config.json gives."""
    return [*map(str, read_json(folder / "config.json").get("architectures") or ())]


def is_reward_model(folder: Path) -> bool:
    """Whether a folder's model scores sequences instead of predicting tokens."""
    return _is_known(folder) or _scores_by_own_code(folder)


def _is_known(folder: Path) -> bool:
    """Whether a folder's model is a classifier, or of ArmoRM's kind, by its name."""
    return any(name.endswith((CLASSIFIER.removeprefix("AutoModel"), GATED)) for name in _classes(folder))


def _scores_by_own_code(folder: Path) -> bool:
    """Whether a folder's model is a classifier by code that comes with it, and no language model."""
    own = read_json(folder / "config.json").get("auto_map") or {}
    name = str(own.get(CLASSIFIER, "")).rpartition(".")[2]
    return CLASSIFIER in own and (name in _classes(folder) or "AutoModelForCausalLM" not in own)


def is_gated(folder: Path) -> bool:
    """Whether a folder's reward model weighs rewards of several objectives, as ArmoRM does."""
    return any(name.endswith(GATED) for name in _classes(folder))


def labels_of(folder: Path) -> int:
    """The number of labels of a folder's classifier."""
    config = read_json(folder / "config.json")
    return len(config.get("id2label") or ()) or config.get("num_labels", 2)  # transformers' own default is two


def check_reward_model(folder: Path, brings_template: bool = True, trusted: bool | None = None) -> None:
    """Check that a folder holds a reward model. Only small files are read, so it is quick enough to do before any run.

    Args:
        folder: the model's folder.
        brings_template: whether the chat template has to be in the folder.
        trusted: whether code that comes with it is run; None for what the folder says.

    Raises:
        HalosError: there is no model, it is of another kind, it has more than two labels, or it has no chat template to
            use.
    """
    if not (folder / "config.json").is_file():
        raise HalosError(f"there is no reward model in {folder} (no config.json); put one there or name another folder")
    if not is_reward_model(folder):
        kind = next(iter(_classes(folder)), "a model of no known kind")
        raise HalosError(
            f"{folder} holds {kind}, and a reward model is a sequence classifier with one or two labels, or ArmoRM's "
            "kind: name another"
        )
    accepted = trusts(folder) if trusted is None else trusted
    if not (_is_known(folder) or accepted) or (trusted is False and (folder / TRUSTED).is_file()):
        raise HalosError(
            f"the reward model in {folder} brings code of its own, which is not run: make it an entry of models with "
            "`trust_remote_code: true` if you have read and trust it, or name another"
        )
    if not is_gated(folder) and (labels := labels_of(folder)) > 2:
        raise HalosError(
            f"{folder} is a classifier with {labels} labels, of which none is known to be the reward: a reward model "
            "has one label, or two of which the second is the better; name another"
        )
    if not brings_template:
        return
    names = _template_names(folder)
    if not names:
        raise HalosError(f"the reward model in {folder} has no chat template; put one there as chat_template.jinja")
    if "default" not in names:
        known = ", ".join(sorted(names))
        raise HalosError(
            f"the reward model in {folder} has no chat template named default (it has {known}); put one there as "
            "chat_template.jinja"
        )


def _template_names(folder: Path) -> set[str]:
    """The names of the chat templates that a model folder holds; one without a name is `default`."""
    names = {path.stem for path in (folder / "additional_chat_templates").glob("*.jinja")}
    if (folder / "chat_template.jinja").is_file():
        return {"default", *names}
    if names:  # transformers then reads no other place
        return names
    tokenizer = folder / "tokenizer_config.json"
    known = read_json(tokenizer).get("chat_template") if tokenizer.is_file() else None
    if isinstance(known, list):
        return {str(template.get("name")) for template in known}
    return {"default"} if known else set()
