"""A warning that the process will be ended: SIGTERM, or SIGUSR2 before a SLURM job's time is up."""

from __future__ import annotations

import signal

PREEMPTED = 75  # exit code after SIGTERM: saved, start the same command again (EX_TEMPFAIL)


class Preemption:
    """Notes a SIGTERM or SIGUSR2, SLURM's warning before a job's time is up (utils/launcher.py).

    The loop then finishes its step, saves and exits with code PREEMPTED. Where nothing has to be
    saved (gradients, waiting for a lock, between runs) `check` exits.
    """

    def __init__(self):
        self.requested, self.signal = False, signal.SIGTERM

    def install(self) -> None:
        for name in ("SIGTERM", "SIGUSR2"):
            if hasattr(signal, name):  # Windows has no SIGUSR2
                signal.signal(getattr(signal, name), self._note)

    def _note(self, number: int, _) -> None:
        self.requested, self.signal = True, signal.Signals(number)

    def check(self) -> None:
        if self.requested:
            print(f"{self.signal.name}: interrupted; rerun the same command to resume", flush=True)
            raise SystemExit(PREEMPTED)


PREEMPTION = Preemption()
