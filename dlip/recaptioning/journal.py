"""Captions as they are written, on disk batch by batch, so that a killed command continues."""

import json
import os
from pathlib import Path

from dlip.common.errors import UserError
from dlip.common.files import fsync_dir


class Journal:
    """A file of JSON lines: what captions are written for and how, then a line for each batch of images."""

    def __init__(self, path: Path, about: dict):
        """Read what is there. about: {"writing": options, "data": {split: fingerprint}}.

        Raises UserError if the file holds captions of another writer, with other options or of other data, or cannot be
        read. A file without captions is begun anew; a line that a crash left half written is dropped.
        """
        self.path, self.about = path, json.loads(json.dumps(about))
        self.captions: dict[str, dict[int, list[str]]] = {}
        """Split -> place of an image -> what was written for it."""
        self.scores: dict[str, dict[int, list[float]]] = {}
        """The same of scores; empty if there is no filter."""
        self._bytes = 0
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        lines = [line for line in lines if line.endswith(b"\n")]
        try:
            rows = [json.loads(line) for line in lines]
            if len(rows) > 1:
                self._check(rows[0])
                self._bytes = sum(map(len, lines))
            for row in rows[1:]:
                self._add(row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({error!r}); name another folder") from error

    def append(self, split: str, first: int, captions: list[list[str]], scores: list[list[float]] | None) -> None:
        """Add what was written for the images from place `first` on; it is on disk when this returns."""
        row = {"split": split, "first": first, "captions": captions, "scores": scores}
        new = [row] if self._bytes else [self.about, row]
        data = "".join(json.dumps(one) + "\n" for one in new).encode()
        with open(self.path, "ab") as file:
            file.truncate(self._bytes)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fsync_dir(self.path.parent)
        self._bytes += len(data)
        self._add(row)

    def _add(self, row: dict) -> None:
        places = range(row["first"], row["first"] + len(row["captions"]))
        self.captions.setdefault(row["split"], {}).update(zip(places, row["captions"], strict=True))
        if row["scores"] is not None:
            self.scores.setdefault(row["split"], {}).update(zip(places, row["scores"], strict=True))

    def _check(self, there: dict) -> None:
        folder = self.path.parent
        for name, value in self.about["writing"].items():
            if (old := there["writing"].get(name)) != value:
                flag = f"--{name.replace('_', '-')}"
                before, now = (f"without {flag}" if v is None else f"with {flag} {v}" for v in (old, value))
                raise UserError(f"{folder} holds captions written {before}, not {now}; name another folder")
        if {*there["data"]} != {*self.about["data"]}:
            raise UserError(
                f"{folder} holds captions of the splits {','.join(there['data'])}; pass these as --splits, or name "
                "another folder"
            )
        if there["data"] != self.about["data"]:
            raise UserError(f"{folder} holds captions of other data, or the data have changed; name another folder")
