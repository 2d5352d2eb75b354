"""The gallery of the Search tab: the user's own images, with and without captions, and the shipped ones."""

import pytest
from PIL import Image

import dlip
from app import gallery, images
from app.page import build
from app.tabs import search
from dlip.common.errors import UserError
from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import Scenes

TEACHER, STUDENT = "scenes/teacher", "scenes/student"
SIZE = 8


@pytest.fixture(autouse=True)
def shipped_afterwards():
    yield
    gallery.use(None)


@pytest.fixture
def plain(tmp_path):
    """A folder of images alone, one of them in a subfolder."""
    folder = tmp_path / "plain"
    (folder / "more").mkdir(parents=True)
    for i in range(SIZE):
        Image.fromarray(Scenes("test")[i].image).save(folder / ("more" if i == SIZE - 1 else "") / f"{i}.png")
    return folder


def components() -> dict:
    return {part["props"].get("elem_id"): part["props"] for part in build().get_config_file()["components"]}


def test_the_shipped_gallery_has_scenes_and_photographs():
    shipped = gallery.current()
    assert len(shipped.entries) == len(images.SCENES) + len(images.photographs())
    assert shipped.caption(5) == Scenes("test")[5].captions[0]
    assert shipped.image(200) == images.photographs()[0].image
    assert f"{len(images.SCENES)} drawn scenes" in search.introduction() and components()["reverse"]["visible"]
    hits = search.search("photos/teacher", "scenes/student", "a man with a camera")
    assert hits["teacher"]["hits"][0]["place"] == 205
    assert {hit["place"] for hit in hits["teacher"]["hits"]} <= {*range(200, len(shipped.entries))}
    assert {hit["place"] for hit in hits["student"]["hits"]} <= {*range(200)}


def test_a_folder_with_captions_is_searched_both_ways(tmp_path, image_path):
    splits = {"train": Scenes("train-small", size=3), "val": Scenes("val", size=SIZE)}
    write_folder(tmp_path / "own", splits)
    gallery.use(str(tmp_path / "own"))
    own = [item for split in splits.values() for item in split]
    captions = [item.captions[0] for item in own]
    assert [entry.caption for entry in gallery.current().entries] == captions
    vlm, shown = dlip.load(TEACHER), [item.image for item in own]
    itm = vlm.match(shown, [captions[6]] * len(own))
    joint = vlm.similarity(shown, [captions[6]])[:, 0] / vlm.med.temp + itm.logit()
    best = joint.argsort(descending=True)[: search.SHOWN]
    result = search.search(TEACHER, STUDENT, captions[6])["teacher"]["hits"]
    assert [hit["place"] for hit in result] == best.tolist()
    assert [hit["itm"] for hit in result] == pytest.approx(itm[best].tolist())
    result = search.sentences(image_path, TEACHER, STUDENT)["student"]["hits"]
    assert {hit["caption"] for hit in result} <= {*captions} and len(result) == search.SHOWN


def test_a_folder_without_captions_is_searched_by_sentences_alone(plain, image_path):
    gallery.use(str(plain))
    result = search.search(TEACHER, STUDENT, Scenes("test")[3].captions[0])
    assert result["teacher"]["hits"][0]["place"] == 3 and {hit["caption"] for hit in result["teacher"]["hits"]} == {""}
    shown = search.show(result, (TEACHER, STUDENT))
    assert shown.count("<img") == 2 * search.SHOWN
    with pytest.raises(UserError, match="have no captions to choose from; search them by a sentence"):
        search.sentences(image_path, TEACHER, STUDENT)
    assert not components()["reverse"]["visible"] and "the other way round" not in search.introduction()


def test_a_small_gallery_is_shown_whole(plain):
    for i in range(3, SIZE):
        next(plain.rglob(f"{i}.png")).unlink()
    gallery.use(str(plain))
    result = search.search(TEACHER, STUDENT, "a red circle")
    assert sorted(hit["place"] for hit in result["student"]["hits"]) == [0, 1, 2]
    shown = search.show(result, (TEACHER, STUDENT))
    assert "All 3 are shown" in shown and "hit shared" not in shown


def test_embeddings_belong_to_one_gallery(plain):
    """Of a model that has searched another one before."""
    search.search(TEACHER, STUDENT, "a red circle")
    gallery.use(str(plain))
    assert {hit["place"] for hit in search.search(TEACHER, STUDENT, "a star")["teacher"]["hits"]} <= {*range(SIZE)}


def test_unreadable_images_are_skipped_and_large_ones_scaled_down(plain):
    (plain / "0.png").write_text("no image")
    Image.new("RGB", (3000, 300)).save(plain / "1.png")
    Image.new("RGB", (5000, 2)).save(plain / "2.png")
    with pytest.warns(UserWarning, match=r"^skipped 1 image of .*plain: .*0\.png"):
        gallery.use(str(plain))
    assert len(gallery.current().entries) == SIZE - 1
    assert gallery.current().image(0).size == (gallery.MAX_SIDE, 102)
    assert gallery.current().image(1).size == (gallery.MAX_SIDE, 1)


def test_a_deleted_image_is_one_sentence_without_its_path(plain):
    gallery.use(str(plain))
    (plain / "0.png").unlink()
    with pytest.raises(UserError, match="can no longer be read; restart the app") as caught:
        search.search(TEACHER, STUDENT, "a star")
    assert str(plain) not in str(caught.value)


def test_images_beyond_the_limit_are_not_searched(plain, monkeypatch):
    monkeypatch.setattr(gallery, "MAX_IMAGES", 5)
    gallery.use(str(plain))
    assert len(gallery.current().entries) == 5
    assert f"{plain} has 8 images; the first 5 are searched." in search.introduction()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no folder .*own; check its name"),
        (lambda path: path.mkdir(), "own holds neither captions.json nor"),
        (lambda path: path.write_text("x"), "there is no folder .*own; check its name"),
        (lambda path: path.mkdir() or (path / "x.png").write_text("x"), "no image of .*own can be read: .*x.png"),
    ],
)
def test_a_bad_folder_is_one_sentence(make, message, tmp_path):
    make(tmp_path / "own")
    with pytest.raises(UserError, match=message) as caught:
        gallery.use(str(tmp_path / "own"))
    assert "\n" not in str(caught.value)
