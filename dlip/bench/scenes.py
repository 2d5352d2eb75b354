"""How fast the scenes are drawn, by one process."""

from itertools import count

from dlip.bench import by_turns, row
from dlip.data.scenes.dataset import Scenes
from dlip.data.scenes.render import render

PICTURES = 500


def run(rounds: int = 9) -> tuple[dict, list[dict]]:
    """Pictures a second, never one that was drawn before: pixels alone, and with captions, questions and tags."""
    data, places = Scenes("train-large"), count()

    def several(make) -> None:
        for _ in range(PICTURES):
            make(next(places))

    makes = {"pixels": lambda i: render(data.scene(i)), "with words": data.__getitem__}
    times = by_turns({name: lambda make=make: several(make) for name, make in makes.items()}, rounds)
    speeds = {name: [PICTURES / seconds for seconds in some] for name, some in times.items()}
    first = speeds["pixels"]
    return {"pictures": PICTURES, "rounds": rounds}, [row(n, some, first, "images_per_s") for n, some in speeds.items()]
