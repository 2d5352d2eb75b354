"""Features of the frozen stages of an image backbone, cached on disk: some augmented views of each image, in turn."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import PIL
import torch
from torch import Tensor

from dlip.data.batch import Batch, Example
from dlip.data.collate import Collate
from dlip.data.dataset import DataSet
from dlip.models.med import Med
from dlip.training.caches.disk import cache_key, fill, locked, open_columns, to_float16
from dlip.training.config import CACHE_GB

VERSION = 1
"""Version of the layout on disk."""


class FeatureCache:
    """Cached backbone features of a dataset's images. Call it with a batch whose `index` and `views` are known.

    A column has one view of every image. Runs may share a cache, whatever their seeds.
    """

    def __init__(
        self,
        root: str | Path,
        med: Med,
        dataset,
        collate: Collate,
        autocast: Callable[[], AbstractContextManager],
        precision: str,
        max_gb: float = CACHE_GB,
        keep: Sequence[Path] = (),
    ):
        """Open a cache in the folder `root`; fill what is missing and, with a warning, what is damaged.

        collate: its views of the images are taken. autocast: context of the precision in which features are computed.
        keep: the run's other caches. Raises UserError as `open_columns` does.
        """
        c, backbone = med.config, med.vision_model.embeddings.backbone
        about = {
            "version": VERSION, "torch": torch.__version__, "timm": version("timm"), "pillow": PIL.__version__,
            "precision": precision, "backbone": c.image_backbone, "size": c.image_size, "mean": c.image_mean,
            "std": c.image_std, "data": dataset.fingerprint(), "image_size": collate.image_size, "views": collate.views,
            "augment": [collate.augment, collate.flip],
        }  # fmt: skip
        self.folder, noun = Path(root) / cache_key(about, backbone.frozen_part), "image features"
        device = med.temp.device

        @torch.no_grad()
        def compute(rows: range) -> None:
            items = [dataset[row] for row in rows]
            for view, column in enumerate(self.columns):
                with autocast():
                    features = backbone.frozen_features(med.normalize(collate.pixels(items, view).to(device)))
                column[rows.start : rows.stop] = to_float16(features, "the backbone's output")

        with torch.no_grad():
            shape = backbone.frozen_features(torch.zeros(1, 3, c.image_size, c.image_size, device=device)).shape
        with locked(self.folder):
            columns = open_columns(
                self.folder, {f"view.{v}": (len(dataset), *shape[1:]) for v in range(collate.views)}, max_gb, noun, keep
            )
            self.columns = list(columns.values())
            fill(self.folder, columns, len(dataset), compute, noun)

    def __call__(self, batch: Batch) -> Tensor:
        """Features [B, P', C'], float32."""
        view = self.columns[int(batch.views[0])]  # a batch never spans two epochs
        return torch.from_numpy(view[batch.index.cpu().numpy()]).float().to(batch.image_id.device)


class WithoutImages(DataSet):
    """A data set whose examples have no images. A process reads the texts of each once and keeps them."""

    def __init__(self, dataset: DataSet):
        self.dataset, self._items = dataset, dict[int, Example]()
        self.name, self.split, self.fields = dataset.name, dataset.split, dataset.fields

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Example:
        if i not in self._items:
            self._items[i] = self.dataset.without_image(i)
        return self._items[i]

    def fingerprint(self) -> str:
        return self.dataset.fingerprint()
