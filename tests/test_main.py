"""The command before its imports are done."""

import subprocess
import sys
from types import ModuleType

import dlip
from dlip.__main__ import main


def test_an_interruption_while_it_imports_is_one_line(monkeypatch, capsys):
    class Interrupted(ModuleType):
        def __getattr__(self, name: str):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "dlip.cli", Interrupted("dlip.cli"))
    assert main() == 130
    assert capsys.readouterr().err == "dlip: interrupted\n"


def test_python_runs_the_package():
    done = subprocess.run([sys.executable, "-m", "dlip", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"dlip {dlip.__version__}\n")
