"""`python -m halos ...` in processes that come of a server, which has imported torch and what else takes seconds.

Imports are most of the time of a job of a small study. A folder with a `python` that asks the server stands first in
PATH; the process that the server forks has the caller's arguments, folder, variables and open files, and runs the code
of the folder, as always. What kills or looks for such processes uses the real one: these have another command line.
"""

from __future__ import annotations

import array
import atexit
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

PRELOADED = ("torch", "transformers.modeling_utils", "transformers.models.llama.modeling_llama", "peft", "accelerate",
             "datasets", "pandas", "scipy.optimize", "scipy.stats", "pydantic", "safetensors.torch", "yaml", "lm_eval",
             "lm_eval.models.huggingface", "matplotlib.figure")  # fmt: skip
CLIENT = """#!{python} -IS
import array, json, os, socket, sys
if sys.argv[1:2] != ["-m"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
server.sendmsg([len(request).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
server.sendall(request)
code = server.recv(1)
sys.exit(code[0] if code else 137)
"""


class Warm:
    """The server, and the folder of its `python`."""

    def __init__(self, folder: Path) -> None:
        self.folder, address = folder, str(folder / "server")
        client = folder / "python"
        client.write_text(CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
        command = [sys.executable, __file__, address]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, env=variables, cwd=folder)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"

    def stop(self) -> None:
        self._server.kill()
        self._server.wait()


def serve(address: str) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    while True:
        caller, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _run(caller)
        caller.close()


def _run(caller: socket.socket) -> None:
    """A forked process: become what the caller asks for, tell it the exit code, and end with it."""
    fds = array.array("i")
    length, ancillary, _, _ = caller.recvmsg(8, socket.CMSG_SPACE(3 * fds.itemsize))
    fds.frombytes(ancillary[0][2])
    request = b""
    while len(request) < int.from_bytes(length, "big"):
        request += caller.recv(1 << 20)
    arguments, folder, variables = json.loads(request)
    for target, source in enumerate(fds):
        os.dup2(source, target)
        os.close(source)
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    threading.Thread(target=_end_with, args=(caller,), daemon=True).start()
    os.execvp = _stand_in  # type: ignore[assignment]  # by which the launcher becomes the verb
    code = _module(arguments)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    caller.sendall(bytes([code & 255]))
    os._exit(code & 255)


def _module(arguments: list[str]) -> int:
    """The exit code of `python -m ARGUMENTS`."""
    module, *sys.argv[1:] = arguments
    sys.path[0] = os.getcwd()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _stand_in(file: str, command: list[str]) -> Any:
    assert command[:2] == [sys.executable, "-m"], command
    sys.exit(_module(command[2:]))


def _end_with(caller: socket.socket) -> None:
    """End this process when its caller has ended."""
    if not caller.recv(1):
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    serve(sys.argv[1])
