"""Runs commands of this repository in children forked after the imports, and kills them midway.

`python fork_server.py` reads one JSON request a line and answers each with one JSON line:
    {"commands": [[module, flags...], ...], "kill_at": n or null, "signal": "SIGKILL" | "SIGTERM",
     "fsize": largest file in bytes or null}  ->  {"status": exit code or -signal, "events": int}

An event is a point where a kill can hurt: half of a file written, a temporary file written, a file
renamed, a piece of the image store written, a gradient computed. The child kills itself at event
`kill_at`, so that kills hit the work and not the imports; `events` counts those of the child.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

PWRITE = os.pwrite
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


class ForkServer:
    """This file as a process; `modules` are imported there before any child is forked."""

    def __init__(self, *modules: str):
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, __file__, *modules], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, *commands: list[str], **request) -> tuple[int, int]:
        """(exit code or minus the signal, events) of the commands, one after the other."""
        self.process.stdin.write(json.dumps({"commands": commands, **request}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["status"], answer["events"]

    def printed(self) -> str:
        """All that the children wrote so far."""
        self.output.seek(0)
        return self.output.read()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.output.close()


class Saboteur:
    """Counts events, in the open file `report`, and sends this process a signal at event `at`."""

    def __init__(self, at: int | None, number: signal.Signals, report: int):
        self.at, self.number, self.report = at, number, report
        self.count, self.lock = 0, threading.Lock()

    def event(self, before=lambda: None) -> None:
        with self.lock:
            self.count += 1
            PWRITE(self.report, b"%d" % self.count, 0)
            if self.count == self.at:
                before()
                os.kill(os.getpid(), self.number)

    def install(self) -> None:
        import torch

        replace, write, backward = os.replace, Path.write_bytes, torch.Tensor.backward

        def replacing(*paths):
            self.event()
            replace(*paths)
            self.event()

        def writing(path, data):
            self.event(lambda: write(path, data[: len(data) // 2]))
            return write(path, data)

        def storing(*args):
            self.event()
            return PWRITE(*args)

        def differentiating(*args, **kwargs):
            backward(*args, **kwargs)
            self.event()

        os.replace, os.pwrite, Path.write_bytes = replacing, storing, writing
        torch.Tensor.backward = differentiating


def child(request: dict, report: int) -> None:
    """Carry out the request in this process and leave it."""
    status = 1
    try:
        sys.argv = ["command"]
        if request.get("fsize"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["fsize"],) * 2)
        number = signal.Signals[request.get("signal") or "SIGKILL"]
        Saboteur(request.get("kill_at"), number, report).install()
        for module, *flags in request["commands"]:
            importlib.import_module(module).main(flags)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:  # noqa: BLE001 - a child must never return into the server's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # the children's own output goes to stderr
    os.dup2(2, 1)
    for module in sys.argv[1:]:
        importlib.import_module(module)
    import torch

    torch.set_num_threads(1)  # a forked child cannot use its parent's threads
    torch._dynamo  # noqa: B018 - imported by the first optimiser: once here, not in every child
    for line in sys.stdin:
        request = json.loads(line)
        report = os.memfd_create("events")
        if (pid := os.fork()) == 0:
            child(request, report)
        _, status = os.waitpid(pid, 0)
        events = int(os.pread(report, 20, 0) or 0)
        os.close(report)
        status = os.waitstatus_to_exitcode(status)
        answers.write(json.dumps({"status": status, "events": events}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
