"""Runs commands of this repository in children forked after the imports, and stops them midway.

`python fork_server.py MODULE...` imports the modules, reads one JSON request a line and answers
each with one JSON line:
    {"commands": [[module, flag, ...], ...],   main(flags) of each, one after the other
     "kill_at": n, "signal": name,             a signal at the n-th event, SIGKILL where not given
     "stage": name, "kind": name,              counting only the events of that stage and kind
     "fsize": bytes,                           the largest file that may be written
     "figures": false,                         draw none
     "reap": pid}                              instead of all this: wait for a stopped child's end
 -> {"status": exit code or -signal, "pid": pid, "events": {"<stage>/<kind>": number}}

An event is a point where a kill can hurt: half of a file written ("write"), a temporary file
written, a file renamed (both "rename"), a piece of an image store to be written ("store"), a
gradient computed ("gradient"), a wait for another run's lock ("sleep"). So kills hit the work and
not the imports. STAGES says which function's events count as which stage.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

PWRITE = os.pwrite
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

STAGES = {  # in the order in which generating and AIM-Fair reach their last events
    "generation": ["stable_diffusion.generate:generate"],
    "image store": ["datasets.image_store:_build"],
    "pre-training": ["models.strategies:pretrained"],
    "mask": ["models.selection:Rule.mask"],
    "fine-tuning": ["models.strategies:fit_stage"],
    "run folder": ["models.experiment:execute"],  # lists, metrics, marks: what no other counts
    "tables": ["utils.reporting.tables:write_summary", "utils.reporting.plots:draw_all",
               "utils.reporting.report:write_contact_sheets",
               "utils.reporting.report:write_report"],
}


class ForkServer:
    """This file as a process; `modules` are imported there before any child is forked."""

    def __init__(self, *modules: str):
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, __file__, *modules], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.pid = 0  # of the latest child

    def run(self, *commands: list[str], **request) -> tuple[int, Counter]:
        """(exit code or minus the signal, events) of the commands, one after the other.

        A child that was stopped (SIGSTOP) is still there, under `pid`.
        """
        self.process.stdin.write(json.dumps({"commands": commands, **request}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.pid = answer["pid"]
        return answer["status"], Counter(answer["events"])

    def printed(self) -> str:
        """All that the children wrote so far."""
        self.output.seek(0)
        return self.output.read()

    def close(self) -> None:
        self.process.kill()  # it holds nothing, and seconds of modules to take down
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        self.output.close()


def count(events: Counter, stage: str | None = None, kind: str | None = None) -> int:
    """How many of a run's events are of a stage and kind, None for any."""
    pairs = ((key.split("/"), number) for key, number in events.items())
    return sum(n for (s, k), n in pairs if stage in (None, s) and kind in (None, k))


class Saboteur:
    """Counts events, in the open file `report`, and sends this process the signal asked for."""

    def __init__(self, request: dict, report: int):
        self.at, self.report = request.get("kill_at"), report
        self.wanted = (request.get("stage"), request.get("kind"))
        self.signal = signal.Signals[request.get("signal") or "SIGKILL"]
        self.stages, self.events = ["other"], Counter()
        self.lock = threading.Lock()

    def event(self, kind: str, before=lambda: None) -> None:
        stage = self.stages[-1]
        with self.lock:
            self.events[f"{stage}/{kind}"] += 1
            PWRITE(self.report, json.dumps(self.events).encode(), 0)  # it only gets longer
            ours = all(wanted in (None, is_) for wanted, is_ in zip(self.wanted, (stage, kind)))
            if ours and count(self.events, *self.wanted) == self.at:
                before()
                os.kill(os.getpid(), self.signal)

    def install(self) -> None:
        """Take the place of what makes events."""
        import torch

        replace, write, sleep = os.replace, Path.write_bytes, time.sleep
        backward = torch.Tensor.backward

        def replacing(*paths):
            self.event("rename")
            replace(*paths)
            self.event("rename")

        def writing(path, data):
            self.event("write", lambda: write(path, data[: len(data) // 2]))
            return write(path, data)

        def storing(*args):
            self.event("store")
            return PWRITE(*args)

        def differentiating(*args, **kwargs):
            backward(*args, **kwargs)
            self.event("gradient")

        def sleeping(seconds):
            if seconds >= 0.1:  # subprocess waits for its children in shorter ones
                self.event("sleep")
            sleep(seconds)

        os.replace, os.pwrite, Path.write_bytes = replacing, storing, writing
        torch.Tensor.backward, time.sleep = differentiating, sleeping
        for stage, functions in STAGES.items():
            for function in functions:
                self.watch(stage, *function.split(":"))

    def watch(self, stage: str, module: str, name: str) -> None:
        """Count what happens in a function as events of a stage, if its module is in use."""
        if module not in sys.modules:
            return
        *owners, name = name.split(".")
        owner = functools.reduce(getattr, owners, sys.modules[module])
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def outer(*args, **kwargs):
            self.stages.append(stage)
            try:
                return inner(*args, **kwargs)
            finally:
                self.stages.pop()

        setattr(owner, name, outer)


def child(request: dict, report: int) -> None:
    """Carry out the request in this process and leave it."""
    status = 1
    try:
        sys.argv = ["command"]
        if request.get("fsize"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["fsize"],) * 2)
        if request.get("figures") is False:
            sys.modules["utils.reporting.plots"].draw_all = lambda *_: []
            sys.modules["utils.reporting.report"].write_contact_sheets = lambda *_: []
        Saboteur(request, report).install()
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


def answer(request: dict) -> dict:
    """Fork a child for the request and wait until it ends or is stopped."""
    report = os.memfd_create("events")
    pid = request.get("reap") or os.fork()
    if pid == 0:
        child(request, report)
    _, status = os.waitpid(pid, 0 if request.get("reap") else os.WUNTRACED)
    events = os.pread(report, 10_000, 0)
    os.close(report)
    stopped = os.WIFSTOPPED(status)
    status = -os.WSTOPSIG(status) if stopped else os.waitstatus_to_exitcode(status)
    return {"status": status, "pid": pid, "events": json.loads(events or "{}")}


def main() -> None:
    gc.disable()  # as conftest.py does; what children share with this process stays shared
    answers = os.fdopen(os.dup(1), "w")  # the children's own output goes to stderr
    os.dup2(2, 1)
    later = ["models.experiment", "utils.reporting.plots", "utils.reporting.report"]  # train's own
    for module in [*sys.argv[1:], *(later if "train" in sys.argv else [])]:
        importlib.import_module(module)
    import tiny
    import torch

    from models.backbones import BACKBONES

    BACKBONES["tiny"] = tiny.Network
    torch.set_num_threads(1)  # a forked child cannot use its parent's threads
    torch._dynamo  # noqa: B018 - imported by the first optimiser: once here, not in every child
    gc.freeze()
    gc.enable()
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
