"""Quantities of a global batch: the same whatever the microbatches and processes that it was cut into."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from halos.distributed.reductions import Gathered, Sums, means

ROOT = Path(__file__).parents[2]
ALONE = type("Alone", (), {"num_processes": 1})()


def tensor(*values: float) -> Tensor:
    return torch.tensor(values)


# ---- sums ------------------------------------------------------------------------------------------------------


def test_a_mean_is_weighted_and_does_not_depend_on_the_microbatches() -> None:
    values, weights = tensor(1, 2, 3, 4, 5), tensor(1, 0, 0.5, 0.5, 2)
    expected = (values * weights).sum() / weights.sum()
    for sizes in ([5], [2, 3], [1, 1, 1, 1, 1]):
        sums = Sums()
        for v, w in zip(values.split(sizes), weights.split(sizes), strict=True):
            sums.add("x", v, w)
            sums.add("y", v)
        found = means(sums.over(ALONE))
        assert found == {"x": pytest.approx(float(expected)), "y": 3}


def test_a_value_without_weight_has_no_mean_but_keeps_its_name() -> None:
    """All processes must send the same names, also those of which one has nothing."""
    sums = Sums()
    sums.add("filler", tensor(7), tensor(0))
    sums.add("nothing", torch.zeros(0), torch.zeros(0))
    sums.add("none of two", torch.zeros(0))
    assert sums.over(ALONE) == {"filler": (0, 0), "nothing": (0, 0), "none of two": (0, 0)}
    assert means(sums.over(ALONE)) == {}
    assert Sums().over(ALONE) == {}


def test_sums_keep_no_gradient_and_are_float32() -> None:
    sums = Sums()
    leaf = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    for _ in range(300):  # bfloat16 would stop counting at 256
        sums.add("x", leaf * 1.0)
    sums.add("scalar", (leaf * 3).sum())
    assert not sums._sums["x"].requires_grad
    assert sums.over(ALONE) == {"x": (600, 600), "scalar": (6, 1)}


# ---- gathered --------------------------------------------------------------------------------------------------


def test_every_example_is_gathered_and_no_filler_is() -> None:
    gathered = Gathered()
    gathered.add({"b": tensor(1, 2), "a": tensor(10, 20)}, tensor(1, 0.25))
    gathered.add({"a": tensor(99), "b": tensor(99)}, tensor(0))
    gathered.add({"a": tensor(0), "b": tensor(3)}, tensor(1))  # a value of 0 is no filler
    found = gathered.over(ALONE)
    assert {name: values.tolist() for name, values in found.items()} == {"a": [10, 20, 0], "b": [1, 2, 3]}


def test_gathered_values_keep_no_gradient() -> None:
    gathered = Gathered()
    leaf = torch.ones(2, requires_grad=True)
    gathered.add({"x": leaf * 2}, tensor(1, 1))
    found = gathered.over(ALONE)["x"]
    assert found.tolist() == [2, 2]
    assert not found.requires_grad


# ---- several processes -----------------------------------------------------------------------------------------

SCRIPT = """
import json
import torch
from accelerate import Accelerator
from halos.distributed.reductions import Gathered, Sums, means

accelerator = Accelerator(cpu=True)
FILLER = ([99.0], [0.0])
# of each process: microbatches of (values, weights)
CASES = {
    "unequal": [[([1.0, 0.0], [1.0, 1.0]), ([3.0], [1.0])], [FILLER, ([6.0], [0.5])]],
    "nothing but a filler": [[([1.0, 2.0], [1.0, 1.0])], [FILLER]],
    "fillers everywhere": [[FILLER], [FILLER]],
}
found = {}
for case, processes in CASES.items():
    gathered, sums = Gathered(), Sums()
    for values, weights in processes[accelerator.process_index]:
        values, weights = torch.tensor(values), torch.tensor(weights)
        gathered.add({"x": values, "minus": -values}, weights)
        sums.add("weighted", values, weights)
        sums.add("counted", values, (weights > 0).float())
    collected = {name: sorted(values.tolist()) for name, values in gathered.over(accelerator).items()}
    found[case] = [collected, means(sums.over(accelerator))]
print(json.dumps([accelerator.num_processes, found]))
accelerator.end_training()
"""


def test_two_real_processes_agree_on_all_examples_and_means() -> None:
    """Processes hold unequal numbers of examples, or none at all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
                 "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=90) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    expected = {
        "unequal": [{"x": [0, 1, 3, 6], "minus": [-6, -3, -1, 0]}, {"weighted": 2, "counted": 2.5}],
        "nothing but a filler": [{"x": [1, 2], "minus": [-2, -1]}, {"weighted": 1.5, "counted": 1.5}],
        "fillers everywhere": [{"x": [], "minus": []}, {}],
    }
    assert [json.loads(out.splitlines()[-1]) for out, _ in outputs] == [[2, expected], [2, expected]]
