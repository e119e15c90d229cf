"""Lines about GPUs, for devices that are not there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from halos.distributed.devices import FOLDER
from halos.doctor.checks import gpus
from halos.errors import HalosError
from tests.distributed.nvml import nvml
from tests.doctor.conftest import Answered, Make, lines

GIB = 2**30
CPU: dict[str, Any] = {"version": "2.13.0+cpu", "cuda": None, "hip": None, "gpus": []}
H100: dict[str, Any] = {"name": "NVIDIA H100", "memory": 80 * GIB, "free": 79 * GIB, "capability": [9, 0]}
V100: dict[str, Any] = {"name": "Tesla V100", "memory": 16 * GIB, "free": 16 * GIB, "capability": [7, 0]}


@pytest.fixture(autouse=True)
def _no_cluster_and_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halos.doctor.setup.shutil.which", lambda name: None)
    monkeypatch.setitem(sys.modules, "pynvml", None)


def for_cuda(*devices: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"version": "2.13.0", "cuda": "12.8", "hip": None, "driver": 12080, "architectures": ["sm_80", "sm_90"],
            "gpus": [*devices], **changes}  # fmt: skip


def with_nvml(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """NVML of a machine with GPUs of Hopper."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml(*names))


def test_a_machine_without_gpus_lacks_them_for_a_grid_that_asks(make: Make) -> None:
    assert lines(gpus.gpus, make(devices=CPU)) == [("GPU", "-", "none here")]
    [(_, state, text)] = lines(gpus.gpus, make({"gpus": 2}, devices=CPU))
    assert state == "to do"
    assert "up to 2" in text


def test_on_a_cluster_gpus_are_on_its_nodes(make: Make) -> None:
    setup = make({"gpus": 2}, devices=CPU)
    setup.__dict__["partitions"] = {"gpu": object()}
    assert lines(gpus.gpus, setup) == [("GPU", "-", "none here; the grid's jobs get theirs from Slurm")]


def test_gpus_are_those_of_nvml(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with_nvml(monkeypatch, "NVIDIA H100", "NVIDIA H100 NVL")
    first, second = lines(gpus.gpus, make(devices=CPU))
    assert first == ("GPU 0", "ok", "NVIDIA H100, 80.0 GiB (10.0 free), compute capability 9.0, bf16, driver 570.86.10")
    assert second[2].startswith("NVIDIA H100 NVL, ")


def test_locks_that_do_not_work_are_to_do(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "locks"))
    assert lines(gpus.locks, make(devices=CPU)) == []
    with_nvml(monkeypatch, "NVIDIA H100")
    [(_, state, text)] = lines(gpus.locks, make(devices=CPU))
    assert (state, str(tmp_path / "locks") in text) == ("ok", True)
    monkeypatch.setenv(FOLDER, str(tmp_path / "no/locks"))
    with pytest.raises(HalosError, match=r"jobs lock their GPUs in .*no/locks, .*\(No such file or directory\): "):
        lines(gpus.locks, make(devices=CPU))


def test_without_nvml_gpus_are_those_of_torch(make: Make) -> None:
    [(about, state, text)] = lines(gpus.gpus, make(devices=for_cuda(H100)))
    assert (about, state) == ("GPU 0", "ok")
    assert text.startswith("NVIDIA H100, 80.0 GiB (79.0 free), compute capability 9.0, bf16, driver ")


def test_too_few_gpus_and_no_bf16_are_to_do(make: Make) -> None:
    setup = make({"gpus": 4}, {"precision": "bf16"}, devices=for_cuda(V100))
    found = {about: (state, text) for about, state, text in lines(gpus.gpus, setup)}
    assert "no bf16 of its own" in found["GPU 0"][1]
    assert found["GPU"][0] == found["bf16"][0] == "to do"
    assert "up to 4, and 1 are here" in found["GPU"][1]
    assert found["GPU memory"][0] == "ok"


def test_a_job_beyond_the_memory_of_the_smallest_gpu_is_to_do(make: Make) -> None:
    small = {**H100, "memory": 1.6e9}
    [*_, (about, state, text)] = lines(gpus.gpus, make({"gpus": 1}, devices=for_cuda(H100, small)))
    assert (about, state) == ("GPU memory", "to do")
    assert "plan" in text


def test_memory_without_a_plan_is_unknown(make: Make) -> None:
    setup = make({"gpus": 1}, {"architecture": None, "tokenizer": None, "hub": "some/model"}, devices=for_cuda(H100))
    [*_, (about, state, text)] = lines(gpus.gpus, setup)
    assert (about, state) == ("GPU memory", "-")
    assert "size" in text


@pytest.mark.parametrize(
    ("said", "state", "text"),
    [
        (for_cuda(H100), "ok", "the driver knows CUDA 12.8"),
        (for_cuda(H100, driver=12020), "ok", "the driver knows CUDA 12.2"),  # compatible within a major version
        (for_cuda(driver=11080), "to do", "newer driver"),
        (for_cuda(H100, architectures=["sm_70", "sm_80"]), "to do", "no code for NVIDIA H100"),
        (for_cuda(H100, architectures=["sm_70", "compute_80"]), "ok", "CUDA"),
        (for_cuda(V100, architectures=["compute_80", "sm_90a"]), "to do", "no code for Tesla V100"),
        (for_cuda(driver=0), "-", "no driver of NVIDIA answers"),
        (
            for_cuda(failure="RuntimeError: CUDA unknown error"),
            "to do",
            "cannot use the GPUs: RuntimeError: CUDA unknown",
        ),
        ({**CPU, "hip": "6.4"}, "ok", "for ROCm 6.4"),
        ({"failure": "ImportError: libcudart"}, "to do", "libcudart"),
        ({"failure": "no answer within 45 seconds", "late": True}, "-", "no answer"),
    ],
)
def test_torch_is_held_against_driver_and_gpus(make: Make, said: dict[str, Any], state: str, text: str) -> None:
    [(about, found, sentence)] = lines(gpus.torch, make({"gpus": 1}, devices=said))
    assert (about, found) == ("torch", state)
    assert text in sentence


def test_a_torch_for_cpus_beside_a_gpu_is_to_do(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with_nvml(monkeypatch, "NVIDIA H100")
    [(_, state, text)] = lines(gpus.torch, make({"gpus": 1}, devices=CPU))
    assert state == "to do"
    assert "install the one for CUDA" in text


def test_gpus_that_torch_does_not_see_are_counted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with_nvml(monkeypatch, "NVIDIA H100", "NVIDIA H100")
    [_, (_, state, text)] = lines(gpus.torch, make({"gpus": 1}, devices=for_cuda(H100)))
    assert state == "-"
    assert "1 of the 2 GPUs" in text


def test_attention_is_to_do_where_the_grid_needs_it(make: Make) -> None:
    works = {"eager": 0.0, "sdpa": 0.012, "flash_attention_2": "ImportError: no flash_attn", "flex_attention": 0.3}
    found = lines(gpus.attention, make(devices=for_cuda(H100), attention=works))
    assert [(about, state) for about, state, _ in found] == [
        ("attention eager", "ok"), ("attention sdpa", "ok"), ("attention flash_attention_2", "-"),
        ("attention flash_attention_3", "-"), ("attention flex_attention", "-"),
    ]  # fmt: skip
    assert "differs from eager by 30" in found[4][2]
    setup = make(model={"attention": "flash_attention_2"}, devices=for_cuda(H100), attention=works)
    _, _, (_, state, text), *_ = lines(gpus.attention, setup)
    assert state == "to do"
    assert "no flash_attn; choose another `attention`" in text


def test_a_kernel_that_the_grid_names_is_tried_as_well(make: Make) -> None:
    kernel = f"kernels-community/flash-attn2@{'a' * 40}"
    setup = make(model={"attention": kernel}, devices=for_cuda(H100))
    setup.probes[None, "attention", kernel] = Answered({"eager": 0.0, "sdpa": 0.01, kernel: "HalosError: not there"})
    *_, (about, state, text) = lines(gpus.attention, setup)
    assert (about, state) == ("attention kernels-community/flash-attn2", "to do")
    assert text == "HalosError: not there; choose another `attention`"


def test_attention_that_is_wrong_on_a_cpu_is_to_do(make: Make) -> None:
    found = lines(gpus.attention, make(devices=CPU, attention={"eager": 0.0, "sdpa": 0.012}))
    assert [state for _, state, _ in found] == ["ok", "to do", "-", "-", "-"]


def test_attention_of_slow_imports_is_unknown_and_one_that_hangs_is_to_do(make: Make) -> None:
    late = {"failure": "no answer within 45 seconds", "late": True}
    assert {state for _, state, _ in lines(gpus.attention, make(devices=CPU, attention=late))} == {"-"}
    hung = lines(gpus.attention, make(devices=for_cuda(H100), attention={"eager": 0.0, **late}))
    assert [state for _, state, _ in hung] == ["ok", "to do", "-", "-", "-"]


def test_processes_that_do_not_add_up_are_to_do_for_a_grid_of_several(make: Make) -> None:
    good = {"backend": "NCCL 2.27.5", "processes": 2, "sum": 3.0}
    assert lines(gpus.processes, make({"gpus": 2}, collective=good)) == [
        ("processes", "ok", "NCCL 2.27.5 adds up over 2 on this machine")
    ]
    for bad in ({**good, "sum": 2.0}, {**good, "sum": None, "failure": "no answer within 45 seconds", "late": True}):
        [(_, state, text)] = lines(gpus.processes, make({"gpus": 2}, collective=bad))
        assert state == "to do"
        assert "NCCL_P2P_DISABLE" in text
        assert [state for _, state, _ in lines(gpus.processes, make(collective=bad))] == ["-"]
