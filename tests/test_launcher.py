"""--launcher: what submitit's jobs make is what the same command makes without it.

SLURM is represented by its commands alone: sbatch keeps the script, which the test then runs with
the environment of a job, srun runs the program, scontrol notes what it is asked.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from refusals import refused

import train
from models.experiment import complete
from utils import launcher
from utils.errors import UserError
from utils.preemption import PREEMPTION

pytest.importorskip("submitit")
TESTS = Path(__file__).parent
EPOCHS = 40  # so that a job can be warned while it trains

COMMANDS = {
    "sbatch": """
        number=$(($(ls "$SLURM_OF_TEST"/*.sh 2> /dev/null | wc -l) + 1))
        cp "$1" "$SLURM_OF_TEST/$number.sh"; echo "Submitted batch job $number" """,
    "srun": """
        echo $$ > "$SLURM_OF_TEST/pid"
        while [ "${1#--}" != "$1" ]; do
          case $1 in --unbuffered) shift ;; *) shift 2 ;; esac
        done
        exec "$@" """,
    "scontrol": 'echo "$*" >> "$SLURM_OF_TEST/asked"',
}


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """The folder in which SLURM's commands leave what they were given."""
    (tmp_path / "bin").mkdir()
    for name, text in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_OF_TEST", str(tmp_path / "slurm"))
    (tmp_path / "slurm").mkdir()
    return tmp_path / "slurm"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """This process knows the small network and so do its jobs; it may leave the repository."""
    init = launcher.Task.__init__
    monkeypatch.setattr(
        launcher.Task, "__init__",
        lambda task, module, *rest: init(task, module.replace("train", "tiny_train"), *rest),
    )
    tiny.with_network(monkeypatch)
    tiny.without_pictures(monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.chdir(tmp_path)


def command(results: str, *more) -> list[str]:
    """ERM with two seeds on ./data; every path is relative to the working directory."""
    flags = tiny.flags(Path("data"), Path(results), "--backbone", "tiny", "--methods", "erm")
    return [*flags, "--seeds", "1", "2", "--pretrain-epochs", str(EPOCHS), *more]


def runs(results: str) -> dict[str, str]:
    """The run folders' files and the tables, with digests."""
    state = tiny.end_state(Path(results))
    hidden = ("tiny/submitit/", "tiny/figures/", "tiny/contact_sheets/", "store/")
    return {path: digest for path, digest in state.items() if not path.startswith(hidden)}


def start(script: Path, **environment: str) -> subprocess.Popen:
    """A job of that script in SLURM's environment."""
    slurm = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0",
             "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": script.stem}
    return subprocess.Popen(
        ["bash", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **slurm, **environment},
    )  # fmt: skip


def test_what_slurm_is_given(slurm, here, tmp_path, capsys):
    tiny.make(tmp_path / "data")
    given = ["partition=gpu", "time=30", "gpus=1", "cpus=4", "mem=16", "parallel=7"]
    train.main(command("array", "--launcher", "slurm", "--slurm", *given))
    assert "2 runs submitted, tables to follow by job 2" in capsys.readouterr().out
    array, last = ((slurm / name).read_text() for name in ("1.sh", "2.sh"))
    for line in ("partition=gpu", "time=30", "gpus-per-node=1", "cpus-per-task=4", "mem=16GB",
                 "array=0-1%2", "job-name=tiny", "signal=USR2@90"):  # fmt: skip
        assert f"#SBATCH --{line}\n" in array
    assert "#SBATCH --dependency=afterany:1\n" in last
    assert "#SBATCH --array" not in last
    assert not (tmp_path / "array" / "tiny" / "erm").exists()  # nothing was run yet


@pytest.mark.slow
def test_one_job_is_requeued_and_another_is_lost(slurm, here, tmp_path):
    tiny.make(tmp_path / "data")
    train.main(command("plain"))
    train.main(command("array", "--launcher", "slurm"))
    one = {"SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "1"}
    job = start(slurm / "1.sh", **one)
    until = time.monotonic() + 300
    while not list(Path("array/tiny/shared").glob("*/state.pt")):
        assert job.poll() is None and time.monotonic() < until, job.stdout.read()
        time.sleep(0.02)
    os.kill(int((slurm / "pid").read_text()), signal.SIGUSR2)  # its time is up
    printed = job.communicate(timeout=300)[0]
    assert "SIGUSR2: interrupted; rerun the same command to resume" in printed
    assert (slurm / "asked").read_text() == "requeue 1_1\n"
    assert not list(Path("array").glob("**/metrics.json"))

    for script, environment in (("1.sh", one), ("2.sh", {})):  # the array's other job never ran
        job = start(slurm / script, **environment)
        printed = job.communicate(timeout=300)[0]
        assert job.returncode == 0, printed
        assert "Job completed successfully" in printed
        assert Path("array/tiny/summary.md").exists() == (script == "2.sh")
    assert "seed2: finished, reused" in printed
    assert "seed1: ACC" in printed
    assert list(Path("array/tiny/figures").glob("*.png"))
    assert runs("array") == runs("plain")


@pytest.mark.slow
def test_an_experiment_is_one_array_and_its_tables_the_last_job(slurm, here, tmp_path, capsys):
    tiny.make(tmp_path / "data")
    short = ["--pretrain-epochs", "1", "--finetune-epochs", "1", "--baseline", "erm"]
    rows = ["--methods", "erm", "random_40", "random_55", "--launcher", "slurm"]
    train.main(command("array", *short, *rows, "--slurm", "time=30"))
    assert "6 runs submitted, tables to follow by job 2" in capsys.readouterr().out
    assert sorted(path.name for path in slurm.glob("*.sh")) == ["1.sh", "2.sh"]
    assert "#SBATCH --array=0-5%6\n" in (slurm / "1.sh").read_text()
    for script, task in (("1.sh", "2"), ("2.sh", None)):  # random_40, seed 1; the tables
        environment = {"SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": task} if task else {}
        job = start(slurm / script, **environment)
        printed = job.communicate(timeout=300)[0]
        assert job.returncode == 0, printed
    assert printed.count("seed1: finished, reused") == 1
    assert printed.count("seed1: ACC") == 2
    summary = Path("array/tiny/summary.md").read_text()
    assert all(f"| {name} " in summary for name in ("erm", "random_40", "random_55"))
    assert "## Paired differences to erm" in summary


def test_local_jobs_and_tables_after_them(here, tmp_path, capsys):
    tiny.make(tmp_path / "data")
    train.main(command("results", "--pretrain-epochs", "1", "--launcher", "local"))
    printed = capsys.readouterr().out
    assert printed.count("finished, reused") == 2
    assert "| erm    |     2 |" in printed
    logs = "".join(path.read_text() for path in Path("results/tiny/submitit").glob("*/*.out"))
    assert logs.count("worst-case EO") == 2


def test_what_goes_wrong_in_a_job_is_said_by_the_command_that_waits(
    here, tmp_path, monkeypatch, capsys
):
    tiny.make(tmp_path / "data")
    said = ("error: --pretrained: weights.pth is not a weights file that loads with weights_only "
            "(it is no file of plain tensors); give a state dict that torch.save wrote")
    (tmp_path / "job_of_test.py").write_text(  # what a run's job does, without its imports
        f"import sys\ndef main(flags):\n    print({said!r}, file=sys.stderr); sys.exit(2)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    init = launcher.Task.__init__
    monkeypatch.setattr(launcher.Task, "__init__",
                        lambda task, _, *rest: init(task, "job_of_test", *rest))
    flags = command("results", "--setting", "wrong", "--launcher", "local")
    sentence = refused(capsys, train.main, flags, names="weights.pth")
    assert sentence.startswith("2 of 2 runs failed, the first with 'error: --pretrained: weights")
    assert "_log.err" in sentence


@pytest.mark.parametrize(("missing", "name"), [("sbatch", "sbatch"), ("srun", "srun")])
def test_without_slurm_it_is_one_sentence(missing, name, slurm, tmp_path, monkeypatch, capsys):
    (tmp_path / "bin" / missing).unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    flags = tiny.flags(tmp_path, tmp_path / "r", "--methods", "erm", "--launcher", "slurm")
    sentence = refused(capsys, train.main, flags, names="--launcher slurm", out=tmp_path / "r")
    assert f"{name} is not on this machine" in sentence


def test_a_device_of_the_jobs_need_not_be_here(slurm, tmp_path):
    flags = tiny.flags(tmp_path, tmp_path, "--methods", "erm", "--device", "cuda:9")
    with pytest.raises(UserError, match="not on this machine"):
        complete(train.parse(flags))
    flags += ["--launcher", "slurm"]
    complete(train.parse(flags))


def test_seeds_at_once_end_as_one_after_the_other(tmp_path, capfd):
    data = tiny.make(tmp_path / "data")
    flags = ["--methods", "erm", "--backbone", "resnet18_quarter", "--pretrain-epochs", "1",
             "--seeds", "1", "2", "--no-tables"]
    train.main(tiny.flags(data, tmp_path / "one", *flags))
    train.main(tiny.flags(data, tmp_path / "two", *flags, "--jobs", "2"))
    printed = capfd.readouterr().out
    assert printed.count("seed1: ACC") == 2 and printed.count("seed1: finished, reused") == 1
    for seed in (1, 2):
        paths = [tmp_path / way / "tiny" / "erm" / f"seed{seed}" / "metrics.json"
                 for way in ("one", "two")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_processes_run_at_once_and_may_say_much(tmp_path):
    """Two wait for each other, which in turn they could not; each fills more than a pipe."""
    program = (
        "import pathlib, sys, time; me, other = map(pathlib.Path, sys.argv[1:]);"
        "me.touch(); print('x' * 200_000, file=sys.stderr);"
        "until = time.monotonic() + 60;\n"
        "while not other.exists():\n"
        "    assert time.monotonic() < until; time.sleep(0.02)"
    )
    names = [str(tmp_path / name) for name in ("a", "b")]
    launcher.in_parallel(
        [[sys.executable, "-c", program, *pair] for pair in (names, names[::-1])], 2)


def test_a_stopped_launcher_stops_its_processes(tmp_path, monkeypatch):
    def stop():
        if len(list(tmp_path.glob("*.pid"))) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(PREEMPTION, "check", stop)
    program = ("import os, pathlib, sys, time;"
               "pathlib.Path(sys.argv[1], f'{os.getpid()}.pid').touch(); time.sleep(100)")
    with pytest.raises(KeyboardInterrupt):
        launcher.in_parallel([[sys.executable, "-c", program, str(tmp_path)]] * 3, 2)
    assert len(list(tmp_path.glob("*.pid"))) == 2  # the third was not begun
    for path in tmp_path.glob("*.pid"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.stem), 0)


def test_what_the_processes_say_is_passed_on_once(capsys):
    program = "import sys; [print(line, file=sys.stderr) for line in ('no room', sys.argv[1])]"
    launcher.in_parallel([[sys.executable, "-c", program, name] for name in "ab"], 1)
    assert capsys.readouterr().err == "no room\na\nb\n"


def test_what_a_failed_process_said_is_passed_on():
    wrong = [sys.executable, "-c", "import sys; sys.exit('error: no such thing')"]
    with pytest.raises(UserError, match="a run failed with 'error: no such thing'"):
        launcher.in_parallel([wrong, wrong], 2)


def test_sbatchs_own_words_are_passed_on(slurm, tmp_path):
    said = "sbatch: error: invalid partition specified: nowhere"
    (tmp_path / "bin" / "sbatch").write_text(f"#!/usr/bin/env bash\necho '{said}' >&2; exit 1\n")
    task = launcher.Task("train", "main", [])
    with pytest.raises(UserError, match=r"\(invalid partition specified: nowhere\): correct"):
        launcher.submit("slurm", [], [task, task], task, tmp_path / "logs", "name")


def test_without_submitit_it_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="pip install submitit, or leave the flag out"):
        launcher.check("local", [])
    launcher.check("none", [])


def test_every_parameter_is_one_of_submitits(slurm, tmp_path):
    import submitit

    pairs = [f"{name}={99 if p.kind is int else 'x'}" for name, p in launcher.PARAMETERS.items()]
    executor = submitit.AutoExecutor(tmp_path, cluster="slurm")
    executor.update_parameters(**launcher.DEFAULTS, name="n")
    executor.update_parameters(**launcher.parse_parameters(pairs))
    text = executor._executor._make_submission_file_text("true", "1")
    assert text.count("=99\n") + text.count("=99GB\n") == sum(
        p.kind is int and name != "parallel" for name, p in launcher.PARAMETERS.items()
    )
    assert shutil.which("sbatch") == str(tmp_path / "bin" / "sbatch")


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("partition", "write NAME=VALUE"),
        ("partition=", "write NAME=VALUE"),
        ("gpu=1", "gpu is unknown; it takes partition, "),
        ("time=1:00", "time must be a whole number of at least 5"),
        ("time=4", "at least 5"),
        ("gpus=-1", "gpus must be a whole number of at least 0"),
        ("cpus=0", "at least 1"),
    ],
)
def test_a_wrong_parameter_is_named(pair, words):
    with pytest.raises(UserError, match=words):
        launcher.check("local", [pair])


def test_a_parameter_given_twice_or_without_a_launcher():
    with pytest.raises(UserError, match="--slurm time is given twice"):
        launcher.parse_parameters(["time=5", "time=6"])
    with pytest.raises(UserError, match="give --launcher slurm too"):
        launcher.check("none", ["time=5"])
