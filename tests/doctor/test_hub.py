"""Lines about the hub, which is a server on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from halos.doctor.checks import hub
from halos.doctor.probe import FAILURE
from tests.data.hub import serve
from tests.doctor.conftest import Answered, Make, lines

COMMIT = "a" * 40
MODELS = {
    name: {"hub": f"some/{name}", "size": {"parameters": 1, "layers": 1, "hidden_size": 1, "intermediate_size": 1,
                                           "vocab_size": 1}}
    for name in ("open", "gated", "absent", "kept", "pickled")
}  # fmt: skip
GRID = {"grids": {"g": {"datasets": ["d", "shp"], "models": [*MODELS], "methods": ["base"]}},
        "datasets": {"shp": {"sources": [{"name": "shp"}]}}, "models": MODELS}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with two models, one of them without safetensors."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, file in (("kept", "model.safetensors"), ("pickled", "config.json")):
        folder = tmp_path / f"home/hub/models--some--{name}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text(COMMIT)
        (folder / "snapshots" / COMMIT).mkdir(parents=True)
        (folder / "snapshots" / COMMIT / file).write_text("{}")
    return tmp_path / "home"


def test_each_entry_is_cached_readable_gated_absent_or_broken(
    make: Make, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that import what opens models and data, and the hub's library, take some seconds."""
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    served = {"some/open": {COMMIT: {}}, "some/gated": {COMMIT: {}}, "stanfordnlp/SHP": {COMMIT: {}}}
    with serve(served, gated=["some/gated"], token="hf_good") as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        found = {about: (state, text) for about, state, text in lines(hub.hub, make(more=GRID))}
    assert found["hub"] == ("ok", f"{address} answers")
    assert found["hub token"] == ("ok", "there, and the hub knows it")
    assert found["models.open"] == ("ok", "some/open may be read, and will be downloaded")
    assert found["models.gated"][0] == found["models.absent"][0] == found["models.pickled"][0] == "to do"
    assert f"ask for access at {address}/some/gated" in found["models.gated"][1]
    assert "there is no some/absent" in found["models.absent"][1]
    assert "no safetensors" in found["models.pickled"][1]
    assert found["models.kept"] == ("ok", "some/kept is in the cache")
    assert found["datasets.shp, shp"] == ("ok", "stanfordnlp/SHP may be read, and will be downloaded")
    assert len(found) == 8
    assert not any("hf_good" in text for _, text in found.values())


def test_all_that_the_entries_name_is_looked_for(make: Make, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's named reference, the tokenizers of others, and the sources of a test split alone."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    size = MODELS["open"]["size"]
    entries = {
        "datasets": {"d": {"sources": [{"name": "shp"}], "test_sources": [{"name": "hh"}]}},
        "models": {
            "m": {"hub": "some/m", "size": size, "tokenizer": {"from": "some/tokenizer"}},
            "other": {"hub": "some/other", "size": size, "tokenizer": {"from": "third"}},
            "third": {"hub": "some/third", "size": size},
        },
        "stages": {"dpo": {"loss": "dpo", "reference": "other"}},
    }
    entries["grids"] = {"g": {"datasets": ["d"], "models": ["m"], "methods": ["dpo"]}}
    found = {about: state for about, state, _ in lines(hub.hub, make(more=entries))}
    names = ("models.m", "models.m.tokenizer", "models.other", "models.third", "datasets.d, shp", "datasets.d, hh")
    assert found == {"hub": "to do", **dict.fromkeys(names, "to do")}


def test_a_token_that_the_hub_does_not_know_is_to_do_where_something_is_missing(
    make: Make, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    with serve({"some/x": {COMMIT: {}}}, token="hf_good") as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        for entries, state in (({"models.x": ["models/some/x", "missing", "why"]}, "to do"), ({}, "-")):
            [_, line, _] = lines(hub.hub, made(make, entries))
            assert line == ("hub token", state, "there, but the hub does not know it: set HF_TOKEN again")


def made(make: Make, entries: dict[str, Any]) -> Any:
    """A setup whose probe of the cache says this."""
    setup = make()
    setup.probes[None, "cached", str(setup.config), "g"] = Answered(entries)  # type: ignore[assignment]
    return setup


def test_a_hub_that_does_not_answer_is_to_do_where_something_is_missing(
    make: Make, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    absent = {"models.x": ["models/some/x", "missing", "why"]}
    (_, state, text), (about, lacks, _) = lines(hub.hub, made(make, absent))
    assert (state, about, lacks) == ("to do", "models.x", "to do")
    assert "does not answer (ConnectError" in text
    assert [state for _, state, _ in lines(hub.hub, made(make, {}))] == ["-", "-"]


@pytest.mark.parametrize("by", ["--offline", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_the_hub_is_not_asked(make: Make, home: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    setup = made(make, {"models.x": ["models/some/x", "cached", ""]})
    if by == "--offline":
        setup.offline = True
    else:
        monkeypatch.setenv(by, "1")
    assert lines(hub.hub, setup) == [
        ("hub", "-", f"not asked ({by})"), ("models.x", "ok", "some/x is in the cache")
    ]  # fmt: skip
    assert [key for key in setup.probes if key[1] == "hub"] == []


def test_a_cache_that_cannot_be_looked_into_is_said(make: Make, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    [_, (_, state, text)] = lines(hub.hub, made(make, {FAILURE: "OSError: stale file handle"}))
    assert state == "-"
    assert "stale file handle" in text
