"""What a command costs before it does anything: heavy packages are imported only where they are used."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "pandas", "matplotlib", "simpy", "gguf", "safetensors", "tokenizers")
COMMAND = Path(sys.executable).with_name("placewright")


def test_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, simulator.cli; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
def test_help_takes_at_most_three_tenths_of_a_cpu_second() -> None:
    assert min(help_cpu_s() for _ in range(5)) <= 0.3


def help_cpu_s() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([COMMAND, "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
