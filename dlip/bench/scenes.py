"""Speed of rendering scenes in one process."""

from itertools import count

from dlip.bench import alternate, row
from dlip.data.scenes.dataset import Scenes
from dlip.data.scenes.render import render

IMAGES = 500


def run(rounds: int = 9) -> tuple[dict, list[dict]]:
    """Images per second, each a new scene: pixels alone, and with captions, questions and tags."""
    data, indices = Scenes("train-large"), count()

    def render_many(make) -> None:
        for _ in range(IMAGES):
            make(next(indices))

    makes = {"pixels": lambda i: render(data.scene(i)), "with texts": data.__getitem__}
    times = alternate({name: lambda make=make: render_many(make) for name, make in makes.items()}, rounds)
    speeds = {name: [IMAGES / seconds for seconds in some] for name, some in times.items()}
    first = speeds["pixels"]
    return {"images": IMAGES, "rounds": rounds}, [row(n, some, first, "images_per_s") for n, some in speeds.items()]
