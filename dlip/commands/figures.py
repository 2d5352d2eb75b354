"""Options and output of a command that prints figures."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dlip.common.fields import option
from dlip.common.files import write_output


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Options of a command that prints figures."""

    json: str | None = option(None, metavar="PATH")
    """Write the figures to PATH as JSON; - for standard output."""

    def show(self, figures: dict, text: str | Callable[[], str]) -> None:
        """Print `text`, or write the figures as JSON if --json is passed."""
        if self.json is None:
            print(text if isinstance(text, str) else text(), flush=True)
        elif self.json == "-":
            print(json.dumps(figures, indent=1))
        else:
            write_output(Path(self.json), lambda path: path.write_text(json.dumps(figures, indent=1) + "\n"))
