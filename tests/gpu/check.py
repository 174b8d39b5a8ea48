"""The proof in ten minutes: the GPU suite and the benchmark, on one page.

    python tests/gpu/check.py [--out results/gpu-check.md] [--rehearse]

Writes the card, the versions, the suite's cases and the benchmark's figures beside their targets.
Exit code 0 only where there is CUDA, no case failed and every target was met. --rehearse runs both
at tiny sizes on the CPU, and never ends in 0.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from utils.files import write_atomic  # noqa: E402

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "timm", "numpy")


def card() -> str:
    """The card and its driver, or that there is none."""
    if not torch.cuda.is_available():
        return "none: torch sees no CUDA device"
    properties = torch.cuda.get_device_properties(0)
    driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                            capture_output=True, text=True, check=False).stdout.split("\n")[0]
    return (f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}"
            f"{properties.minor}, driver {driver or '?'}, {torch.cuda.device_count()} of them")


def ran(*command: str, **environment: str) -> tuple[int, str]:
    """Exit code and output, which is shown as it comes."""
    print("$", *command, flush=True)
    lines = []
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env=os.environ | environment) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines).strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu-check.md")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    flags = parser.parse_args()
    rehearsal = {"REHEARSE": "1"} if flags.rehearse else {}
    suite, cases = ran(sys.executable, "-m", "pytest", "-m", "gpu", "-rA", "--tb=short",
                       "tests/gpu", **rehearsal)
    benchmark, figures = ran(sys.executable, "tests/benchmarks/gpu.py",
                             *(["--quick"] if flags.rehearse else []))
    passed = torch.cuda.is_available() and suite == 0 and benchmark == 0
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    said = [line for line in cases.splitlines()
            if line.startswith(("PASSED", "FAILED", "ERROR", "SKIPPED"))]
    write_atomic(flags.out, "\n\n".join([
        f"# GPU check: {'passed' if passed else 'NOT PASSED'}",
        f"Card: {card()}.  \nVersions: {versions}, CUDA {torch.version.cuda}.",
        f"## Suite (`pytest -m gpu`): exit code {suite}", "\n".join(f"- {line}" for line in said)
        or cases[-2000:],
        f"## Benchmark (`tests/benchmarks/gpu.py`): exit code {benchmark}", figures,
    ]) + "\n")
    print(f"{flags.out}: {'passed' if passed else 'NOT PASSED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
