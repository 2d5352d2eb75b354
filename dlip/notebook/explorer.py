"""Attention and attribution maps of one image and caption in several models, for interactive controls."""

from typing import TYPE_CHECKING

from dlip.plots import overlays

if TYPE_CHECKING:
    from dlip.vlm import VLM

ATTRIBUTION_METHODS = ("integrated gradients", "occlusion", "Grad-CAM")


class AttentionExplorer:
    """Maps of a scene's first caption in models by role, "teacher" first; computed once per model.

    words, layers, heads: (label, value) pairs to choose from. Nouns of objects come first, then their attributes, then
    other words; layers are counted from the last, up to the depth of the shallowest model.
    """

    def __init__(self, models: dict[str, "VLM"], dataset, index: int):
        import torch

        from dlip.data.scenes.render import masks
        from dlip.evaluation.attention_maps import word_maps, word_objects

        item, scene = dataset[index], dataset.scene(index)
        self.models, self.image, self.text = models, item.image, item.captions[0]
        self.maps = {role: word_maps(vlm, item.image, self.text) for role, vlm in models.items()}
        self.masks = torch.from_numpy(masks(scene))  # [O, S, S]
        self.objects = word_objects(self.text, scene)
        mapped = range(min(len(maps.words) for maps in self.maps.values()))
        words = self.text.split()
        nouns = {i for i in self.objects if self.objects.get(i + 1) != self.objects[i]}  # "circle" of "a red circle"
        order = sorted(mapped, key=lambda i: (i not in nouns, i not in self.objects, i))
        self.words = [(f"{i + 1}. {words[i]}", i) for i in order]
        depth = min(len(maps.layers) for maps in self.maps.values())
        self.layers = [("last" if i == 1 else f"{i - 1} before the last", -i) for i in range(1, depth + 1)]
        heads = min(maps.maps.shape[1] for maps in self.maps.values())
        self.heads = [("mean of all", None), *((str(i + 1), i) for i in range(heads))]

    def _mask(self, word: int):
        return self.masks[self.objects[word]].numpy() if word in self.objects else None

    def attention(self, word: int, layer: int = -1, head: int | None = None, student: str = "distilled"):
        """Cross-attention of a word in teacher and student, and the divergence of the two maps."""
        from dlip.evaluation.attention_maps import map_divergence

        pair = {role: self.maps[role] for role in ("teacher", student)}
        panels = [(role, role, maps.patches(word, layer, head).numpy()) for role, maps in pair.items()]
        bits = map_divergence(*(maps.map(word, layer, head) for maps in pair.values())).item()
        return overlays(self.image, panels, self.text.split()[word], self._mask(word), bits)

    def attributions(self, word: int, method: str = ATTRIBUTION_METHODS[0], student: str = "distilled"):
        """Pixels that make the decoder generate a word, in teacher and student, by one of `ATTRIBUTION_METHODS`."""
        from dlip.evaluation import attribution

        function = attribution.METHODS[method]
        scores = {role: attribution.Score(self.models[role], self.text, word) for role in ("teacher", student)}
        panels = [(role, role, function(score, self.image).numpy()) for role, score in scores.items()]
        return overlays(self.image, panels, self.text.split()[word], self._mask(word), signed=True)
