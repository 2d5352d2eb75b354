"""What dlip asks of the machine."""

import subprocess
import sys

import pytest

from dlip.common import machine

FAULTS = """
import resource
import torch
from dlip.common import machine

torch.set_num_threads(1)
for kept in (False, True):
    if kept:
        machine.keep_freed_memory()
    torch.ones(1 << 24)  # 64 MiB, freed at once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(1 << 24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc returns memory in this way")
def test_kept_memory_is_not_mapped_anew():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, check=True)
    returned, kept = map(int, done.stdout.split())
    assert kept < 1000 and returned > 2 * kept


def test_the_code_of_a_record_is_the_commit_of_the_package(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def code() -> tuple[str | None, bool | None]:
        version = machine.code_version.__wrapped__()
        return version["commit"], version["modified"]

    package, other = tmp_path / "dlip" / "__init__.py", tmp_path / "other.txt"
    package.parent.mkdir()
    package.write_text("")
    other.write_text("")
    monkeypatch.setattr(machine.dlip, "__file__", str(package))
    assert code() == (None, None)  # no checkout
    git("init")
    git("add", "other.txt")
    git("commit", "-m", "a")
    assert code() == (None, None)  # an environment inside another project's checkout
    git("add", "dlip")
    git("commit", "-m", "b")
    commit = git("rev-parse", "HEAD")
    assert code() == (commit, False)
    other.write_text("changed")
    assert code() == (commit, False)
    package.write_text("changed = 1")
    assert code() == (commit, True)
