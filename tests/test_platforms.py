"""Other machines: Windows, network file systems, terminals that are not UTF-8, odd environments."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.base import ImageTable
from datasets.image_store import open_store
from utils import files
from utils.errors import UserError, exit_cleanly

COMMANDS = ["train.py", "datasets/check.py", "datasets/demo/build.py",
            "prompts/build.py", "prompts/check.py",
            *(f"models/{name}.py" for name in ("evaluate", "predict", "export", "repair", "tsne")),
            *(f"stable_diffusion/{name}.py"
              for name in ("generate", "edit", "audit", "correlate", "grids"))]
# What only POSIX has is taken away before the command is imported.
ROOT = Path(__file__).resolve().parents[1]
WITHOUT_POSIX = f"""
import os, runpy, signal, sys
sys.path.insert(0, {str(ROOT)!r})
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "posix_fallocate", "pwrite"):
    delattr(os, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGKILL"):
    delattr(signal, name)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def unlocked(monkeypatch):
    monkeypatch.setattr(files, "UNLOCKED", set())


def picture_table(folder: Path) -> ImageTable:
    for i in range(4):
        Image.new("RGB", (8, 8 + 2 * (i % 2)), (i, 2 * i, 3)).save(folder / f"{i}.png")
    return ImageTable("four", [str(folder / f"{i}.png") for i in range(4)], [0] * 4, [0] * 4)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_start_by_their_file_from_any_folder(command, tmp_path):
    env = {**os.environ, "MPLBACKEND": "module://no_such_module.backend", "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, str(ROOT / command), "--help"], cwd=tmp_path, env=env,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout and not done.stderr


def test_flags_are_read_before_torch_is_imported():
    """Ctrl-C during its import is then one line."""
    code = ("import sys, models.evaluate, models.predict, models.export; "
            "print([name for name in ('torch', 'pandas', 'scipy') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_start_without_what_only_posix_has(command, tmp_path):
    done = subprocess.run([sys.executable, "-c", WITHOUT_POSIX, str(ROOT / command), "--help"],
                          cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout and not done.stderr


@pytest.mark.parametrize("missing", ["flock", "fcntl", "pwrite", "posix_fallocate", "fsync"])
def test_a_store_is_built_where_the_system_lacks_something(
    missing, tmp_path, monkeypatch, capsys, unlocked
):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    match missing:
        case "fcntl":
            monkeypatch.setattr(files, "fcntl", None)
        case "flock":
            monkeypatch.setattr(fcntl, "flock", refuse)
        case "pwrite":
            monkeypatch.delattr(os, "pwrite")
        case _:
            monkeypatch.setattr(os, missing, refuse)
    table = picture_table(tmp_path)
    store = open_store(table, tmp_path / "store", threads=3)
    for i, path in enumerate(table.paths):
        np.testing.assert_array_equal(store.image(i), np.asarray(Image.open(path)))
    said = capsys.readouterr().err
    assert said.count("no file locks here") == (missing in ("flock", "fcntl"))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, 524])
def test_no_locks_are_said_once_and_leftovers_stay(
    number, tmp_path, monkeypatch, capsys, unlocked
):
    def refuse(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    leftover = tmp_path / "run" / ".state.pt.123.tmp"  # perhaps another run's, which writes it
    leftover.parent.mkdir()
    leftover.touch()
    for name in ("a", "b"):
        with open(leftover.parent / name, "w") as file:
            files.lock(file, "waiting", lambda: None)
    assert capsys.readouterr().err == (
        f"{leftover.parent}: there are no file locks here; take care that no two runs write to one "
        "folder at once\n"
    )
    files.remove_leftovers(leftover.parent)
    assert leftover.exists()
    files.remove_leftovers(tmp_path)  # elsewhere they go, as ever
    monkeypatch.setattr(files, "UNLOCKED", set())
    files.remove_leftovers(leftover.parent)
    assert not leftover.exists()


@pytest.mark.parametrize("call", ["lock", "flush"])
def test_a_failing_disk_is_not_taken_for_one_without_locks(call, tmp_path, monkeypatch, unlocked):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(*((fcntl, "flock") if call == "lock" else (os, "fsync")), fail)
    with open(tmp_path / "lock", "w") as file, pytest.raises(OSError) as caught:
        if call == "lock":
            files.lock(file, "waiting", lambda: None)
        else:
            files.write_atomic(tmp_path / "x", "text")
    assert caught.value.errno == errno.EIO
    assert not (tmp_path / "x").exists()


def test_a_store_that_cannot_be_mapped_asks_for_another_disk(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(np, "memmap", refuse)
    with pytest.raises(UserError, match="cannot map files into memory; give .* [(]--store-dir[)]"):
        open_store(picture_table(tmp_path), tmp_path / "store")


@pytest.mark.parametrize(("error", "words"), [
    (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "/data/x: Permission denied"),
    (OSError(errno.ESTALE, "Stale file handle", b"/data/\xff"), r"/data/\udcff: Stale file handle"),
    (OSError(errno.EIO, "Input/output error"), "the operating system refused: Input/output error"),
])
def test_what_the_system_refuses_is_one_sentence(error, words, capsys):
    @exit_cleanly
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {words}; mend that and start the same command again\n"
    )


def test_a_librarys_own_oserror_keeps_its_traceback():
    @exit_cleanly
    def main():
        raise OSError("no such thing on the hub")

    with pytest.raises(OSError, match="on the hub"):
        main()


SHOW = """
import sys
from utils.errors import exit_cleanly
@exit_cleanly
def main():
    for _ in range(int(sys.argv[1])):
        print("/data/M\\xfcnchen/\\udcff.png")
main()
"""


def test_names_that_the_terminal_cannot_show_are_escaped():
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SHOW, "1"], env=env, capture_output=True,
                          text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "/data/M\\xfcnchen/\\udcff.png\n"), done.stderr


def test_a_reader_that_stops_early_is_no_error():
    done = subprocess.run(["bash", "-c", '"$0" -c "$1" 100000 | head -n 1; echo ${PIPESTATUS[0]}',
                           sys.executable, SHOW], env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[1:] == ["141"]
    assert done.stderr == ""


ODD = {
    "MPLBACKEND": "module://no_such_module.backend",
    "OMP_NUM_THREADS": "many",
    "COLUMNS": "wide",
    "LC_ALL": "C",
    "HF_HOME": "/dev/null/hub",
    "TORCH_HOME": "/dev/null/torch",
    "XDG_CACHE_HOME": "/dev/null/cache",
    "MPLCONFIGDIR": "/dev/null/mpl",
    "PYTHONWARNINGS": "error::no.such.Warning",
    "TQDM_DISABLE": "perhaps",
    "HOME": "/no/such/home",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_start_in_an_odd_environment(command, tmp_path):
    done = subprocess.run([sys.executable, str(ROOT / command), "--help"], cwd=tmp_path,
                          env={**os.environ, **ODD}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "--help" in done.stdout
