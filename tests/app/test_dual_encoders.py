"""A CLIP or SigLIP in the app: it ranks and searches by ITC alone, and says what it cannot do."""

import pytest
from PIL import Image

import dlip
from app import gallery
from app.tabs import attention, compare, search
from dlip.data.scenes.dataset import Scenes
from tests.checkpoints.dual_helpers import FAMILIES, dual_folder

STUDENT = "scenes/student"
TEXTS = ["a red circle", "the large green star", "b"]


@pytest.fixture(scope="module", params=FAMILIES)
def name(request, tmp_path_factory) -> str:
    return str(dual_folder(tmp_path_factory.mktemp("dual") / request.param, request.param))


@pytest.fixture(scope="module")
def image_path(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("image") / "wide.png"
    Image.fromarray(Scenes("test")[0].image).resize((90, 50)).save(path)
    return str(path)


def test_rankings_by_similarity(name, image_path):
    result = compare.rankings(image_path, name, STUDENT, "\n".join(TEXTS))
    similarity = dlip.load(name).similarity([image_path], TEXTS)[0]
    order = similarity.argsort(descending=True).tolist()
    ranked = result["teacher"]["ranked"]
    assert [row["text"] for row in ranked] == [TEXTS[i] for i in order]
    assert [row["itc"] for row in ranked] == pytest.approx(similarity[order].tolist(), abs=1e-5)
    assert {row["itm"] for row in ranked} == {None} and all(row["itm"] for row in result["student"]["ranked"])
    assert result["teacher"]["cost"]["flops_g"] > 0 and "not comparable" in result["summary"]
    assert compare.show_rankings(result, (name, STUDENT)).count("<tr>") == 3 + 3 * len(TEXTS)


def test_search_by_similarity(name, image_path):
    found = search.search(name, STUDENT, TEXTS[0])["teacher"]["hits"]
    searched = [gallery.current().image(place) for place in gallery.current().places(dlip.load(name), "images")]
    similarity = dlip.load(name).similarity(searched, TEXTS[:1])[:, 0]
    expected = similarity.topk(len(found)).values.tolist()
    assert [hit["itc"] for hit in found] == pytest.approx(expected, abs=1e-5) and len(found) == 5
    assert [hit["itc_rank"] for hit in found] == [1, 2, 3, 4, 5] and {hit["itm"] for hit in found} == {None}
    reverse = search.sentences(image_path, name, STUDENT)
    assert len(reverse["teacher"]["hits"]) == 5
    assert search.show(reverse, (name, STUDENT)).count("ITM") == 5


def test_missing_abilities_are_noted(name, image_path):
    for result, missing in (
        (compare.captions(image_path, name, STUDENT), "write captions"),
        (compare.answers(image_path, name, STUDENT, "what is it?"), "answer questions"),
    ):
        assert f"cannot {missing}" in result["teacher"]["note"] and not result["student"]["note"]
    assert attention.layers_and_heads(name, attention.CROSS)[0] == ["last", "mean"]
