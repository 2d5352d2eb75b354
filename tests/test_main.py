"""The command before its imports are done."""

import sys
from types import ModuleType

from dlip.__main__ import main


def test_an_interruption_while_it_imports_is_one_line(monkeypatch, capsys):
    class Interrupted(ModuleType):
        def __getattr__(self, name: str):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "dlip.cli", Interrupted("dlip.cli"))
    assert main() == 130
    assert capsys.readouterr().err == "dlip: interrupted\n"
