"""A run folder: who works in it, for which configuration, which of its stages are finished.

A run is one seed of a method. Its stages are folders of their own, by any name; only `Run` and
`Stage` look at what is there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import atomic_path, lock, remove_leftovers, write_atomic, write_json
from utils.preemption import PREEMPTION
from utils.records import RECORD, environment, fingerprint, read_log, read_record

RESULTS = ("metrics.json", "log.jsonl", "classifier.pt")  # what a finished run folder holds
DROPPED = ("state.pt", "model.pt")  # what only an unfinished one needs, in its stages too
BESIDE = ("config.json", ".lock")  # written before anything is computed, as are its lists (.csv)

LISTS = {"real_list": "training", "val_list": "validation", "test_list": "test",
         "synthetic_list": "synthetic images", "edited_list": "edited images"}


@contextmanager
def exclusive(folder: Path, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Only one process works in the folder; a second one waits. A killed process leaves no lock.

    `check` is called while waiting and may raise. What a killed run left half written is removed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(
            f"the run folder {folder} cannot be written ({error.strerror}); name another --results"
        ) from None
    with file:
        lock(file, f"{folder}: another run works here; waiting for it", check)
        remove_leftovers(folder)
        yield


def claim(folder: Path, config: dict[str, Any], notes: dict[str, Any] | None = None) -> bool:
    """Bind a folder to a configuration; True where it is already finished with this one.

    `notes` stand in config.json beside the configuration and change no result. A folder in which
    another configuration computed nothing (it stopped at a wrong flag) is bound anew. Raises
    UserError where it holds another configuration's work, naming what differs.
    """
    path, notes = folder / "config.json", notes or {}
    identity = fingerprint(config)
    work = computed(folder)
    if work and not path.exists():
        raise UserError(
            f"{folder} holds {work[0]} but no config.json, so nobody knows of which run: delete "
            "that folder or choose another --setting or --name"
        )
    if work:
        held = read_record(path)
        beside = RECORD | set(held.get("notes", ()))
        if held.get("fingerprint") != identity:
            theirs = {key: value for key, value in held.items() if key not in beside}
            raise UserError(
                f"{folder} holds another run ({'; '.join(_changes(theirs, config)[:4])}): choose "
                "another --setting or --name, or delete that folder"
            )
        if {key: held[key] for key in held.get("notes", ())} != notes:
            write_json(path, {**config, **notes, "fingerprint": identity, "notes": list(notes),
                              "environment": held.get("environment")})
        return (folder / "done").exists()
    for stale in folder.glob("*.csv"):
        stale.unlink()
    record = {"fingerprint": identity, "notes": list(notes), "environment": environment()}
    write_json(path, {**config, **notes, **record})
    return False


def _changes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What differs between two configurations, in words: of lists of samples which ones do, as
    their digests say nothing."""
    keys = [key for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key)]
    changed = [f"{key} was {theirs.get(key)!r} and is now {ours.get(key)!r}"
               for key in keys if key not in LISTS]
    if lists := [words for key, words in LISTS.items() if key in keys]:
        # among the first four, which are said
        changed.insert(3, f"the samples or their labels are others: {', '.join(lists)}")
    return changed or ["the code version changed"]


def computed(folder: Path) -> list[str]:
    """What a run has computed in its folder and its stages, as sorted relative names."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        path.relative_to(folder).as_posix() for path in files
        if path.name not in BESIDE and path.suffix != ".csv"
    )


@dataclass
class Stage:
    """A stage's folder. `finished`: its files are there, so that nothing is left to do."""

    folder: Path
    finished: bool


@contextmanager
def _stage(folder: Path, files: Sequence[str]) -> Iterator[Stage]:
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    finished = all((folder / name).exists() for name in ("done", *files))
    yield Stage(folder, finished)
    if not finished:
        write_atomic(folder / "done", "")
    (folder / "state.pt").unlink(missing_ok=True)


@dataclass
class Run:
    """One seed of a method.

    folder: results/<setting>/<name>/seed<k>. config: the configuration, with the row's overrides.
    identity: what the results depend on, as JSON; notes: what config.json holds beside it. data:
    the images (datasets.mixing.Data), with the labels that the method may see. options: the
    method's hyper-parameters, complete. shared: the folder of what several rows of a setting
    share. log: the finished stages' epochs, in their order. passes: training images that went
    forward and backward in them, the shared pre-training and mean gradients included. observers:
    called with a stage's log after every epoch.
    """

    folder: Path
    config: Any
    data: Any
    seed: int
    shared: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    log: list[dict] = field(default_factory=list)
    passes: int = 0
    observers: list[Callable[[list[dict]], None]] = field(default_factory=list)

    @contextmanager
    def open(self) -> Iterator[bool]:
        """Alone in the folder, bound to the configuration; whether it is already finished.

        Raises UserError where the folder holds another configuration's work.
        """
        with exclusive(self.folder, PREEMPTION.check):
            done = claim(self.folder, dict(self.identity), dict(self.notes))
            yield done and all((self.folder / name).exists() for name in RESULTS)

    @contextmanager
    def stage(self, name: str, *files: str) -> Iterator[Stage]:
        """The run's stage of that name, which leaves `files` in its folder.

        A finished one is not to be computed again (`stage.finished`), a half-done one is resumed
        from what it left there; leaving the context marks it finished.
        """
        with _stage(self.folder / name, files) as stage:
            yield stage

    @contextmanager
    def shared_stage(
        self, name: str, config: Mapping[str, Any], *files: str
    ) -> Iterator[Stage]:
        """A stage whose result every row with the same `config` and seed shares.

        Its folder is named by the configuration, so another one is another folder.
        """
        config = {**config, "seed": self.seed}
        folder = self.shared / f"{name}_seed{self.seed}_{fingerprint(config)}"
        with exclusive(folder, PREEMPTION.check):
            claim(folder, config)
            with _stage(folder, files) as stage:
                yield stage

    def add_log(self, folder: Path, **last: Any) -> None:
        """Append a stage's log.jsonl to the run's; `last` goes to its last epoch."""
        rows = read_log(folder / "log.jsonl")
        rows[-1] |= last
        self.log += rows
        self.passes += sum(row["passes"] for row in rows)

    def adopt(self, root: Path) -> Path | None:
        """Copy the results of a finished run of the same configuration, anywhere below `root`:
        another table has asked for it before. Returns that run's folder, or None."""
        identity = read_record(self.folder / "config.json")["fingerprint"]
        for path in sorted(root.glob(f"**/{self.folder.name}/config.json")):
            twin = path.parent
            if twin == self.folder or not all((twin / f).exists() for f in ("done", *RESULTS)):
                continue
            if read_record(path).get("fingerprint") != identity:
                continue
            for source in sorted(p for p in twin.rglob("*") if p.is_file()):
                if source.name not in (*DROPPED, *BESIDE) and source != twin / "done":
                    target = self.folder / source.relative_to(twin)
                    with atomic_path(target) as temporary:
                        shutil.copyfile(source, temporary)
            self.finish()
            return twin
        return None

    def finish(self) -> None:
        """Mark the run finished and drop what only an unfinished one needs.

        Called again on a finished run it drops what a kill between the two left.
        """
        if not (self.folder / "done").exists():
            write_atomic(self.folder / "done", "")
        for name in DROPPED:
            for path in (self.folder / name, *self.folder.glob(f"*/{name}")):
                path.unlink(missing_ok=True)
