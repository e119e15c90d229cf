"""Several processes of one training on this machine, as accelerate launches them.

They come of a server that has imported what they need, once for all tests: imports are most of their time otherwise.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

ROOT = Path(__file__).parents[2]
TIMEOUT = 300
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["halos.cli", "halos.train.run", "halos.reference.score", "peft", "accelerate.utils"])

# accelerate takes FSDP for GPUs alone: on the CPU it would quietly be DDP. Told that its processes are like those of
# GPUs, it runs all of its FSDP2 code on the CPU.
FSDP = """
os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
dist.init_process_group("gloo")
PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
"""
DDP = 'os.environ["ACCELERATE_USE_CPU"] = "true"\n'
VERBS = """
from halos.cli import main
from accelerate import Accelerator
from accelerate.state import AcceleratorState
codes = []
for command in argument:
    codes.append(main(command))
    if Accelerator().is_fsdp2:
        AcceleratorState().fsdp_plugin.transformer_cls_names_to_wrap = None  # those of the first model's layers
print(f"codes {codes}")
"""


def in_processes(
    folder: Path, number: int, script: str, argument: Any, profile: str = "fsdp", *options: str
) -> list[list[str]]:
    """The lines that each of so many processes prints.

    Args:
        folder: for what they print.
        number: of processes.
        script: the program, in which `argument` is that of this function.
        profile: of profiles/accelerate: `fsdp` or `ddp`.
        options: more options of `accelerate launch`.
    """
    words = ["--config_file", f"profiles/accelerate/{profile}.yaml", "--num_processes", str(number), *options, "script"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    arguments.main_process_port = None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**prepare_multi_gpu_env(arguments), "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}  # fmt: skip
    program = f"import json, os, sys\n{FSDP if profile == 'fsdp' else DDP}{script}"
    outputs = [folder / f"output{rank}.txt" for rank in range(number)]
    processes = [
        CONTEXT.Process(
            target=_run,
            args=({**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, program, json.dumps(argument), output),
        )
        for rank, output in enumerate(outputs)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(TIMEOUT)
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    printed = [output.read_text() for output in outputs]
    assert codes == [0] * number, "\n".join(text[-10000:] for text in printed)
    return [text.splitlines() for text in printed]


def run_verbs(
    folder: Path, commands: list[list[str]], processes: int = 2, profile: str = "fsdp", before: str = "", *options: str
) -> list[int]:
    """The exit codes of verbs, run one after the other by the same processes; all of them have the same.

    Args:
        folder: for what they print.
        commands: the verbs, with their options.
        processes: their number.
        profile: of profiles/accelerate: `fsdp` or `ddp`.
        before: lines that are run before the verbs.
        options: more options of `accelerate launch`.
    """
    check = f"assert Accelerator().is_fsdp2 == {profile == 'fsdp'}\n"
    found = [
        json.loads(line.removeprefix("codes"))
        for output in in_processes(folder, processes, before + VERBS + check, commands, profile, *options)
        for line in output
        if line.startswith("codes")
    ]
    assert len(found) == processes
    assert all(codes == found[0] for codes in found), found
    codes: list[int] = found[0]
    return codes


def _run(environment: dict[str, str], program: str, argument: str, output: Path) -> None:
    """What each process does."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    with output.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    import torch

    torch.set_num_threads(1)
    code = 1
    try:
        exec(compile(program, "script.py", "exec"), {"__name__": "__main__", "argument": json.loads(argument)})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
