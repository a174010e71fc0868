"""File names from ids that may be anything."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ray_wsss.data.file_names import FileNames

HARD = ["../../x", "/etc/passwd", "a/b.jpg", "a_b.png", "A_B", "..", "", "\0", "a\\b", "x" * 400, "x" * 500]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(HARD), unique=True))
def test_names_stay_in_their_folder_and_apart(ids: list[str]) -> None:
    names = FileNames(ids)
    found = [names.name(image_id) for image_id in ids]
    assert len({name.casefold() for name in found}) == len(ids)
    for name in found:
        assert Path(name).name == name
        assert name not in (".", "..")
        assert not name.startswith((".", "-"))
        assert not set(name) & set('\\/:*?"<>| \n\0')
        assert len(f"{name}.jpg".encode()) < 200


def test_plain_ids_are_kept() -> None:
    names = FileNames(["2007_000032", "cat/tom.jpg", "v1.5", "Größe"])
    assert [names.name(i) for i in ("2007_000032", "cat/tom.jpg", "v1.5", "Größe")] == [
        *("2007_000032", "cat_tom", "v1.5", "Größe")
    ]


def test_clashing_names_get_a_hash_whatever_their_order() -> None:
    ids = ["a/b.jpg", "a_b.png", "c.jpg"]
    one, other = FileNames(ids), FileNames(ids[::-1])
    assert [one.name(i) for i in ids] == [other.name(i) for i in ids]
    assert one.name("a/b.jpg").startswith("a_b-")
    assert one.name("a/b.jpg") != one.name("a_b.png")
    # An id that looks like another's name with its hash.
    imitation = one.name("a/b.jpg")
    more = FileNames([*ids, imitation])
    assert more.name(imitation) not in {more.name(i) for i in ids}


def test_numbers_are_the_ids_where_all_are_numbers() -> None:
    coco = FileNames(["000000397133.jpg", "7", "12"])
    assert [coco.number(i, k) for k, i in enumerate(["000000397133.jpg", "7", "12"])] == [397133, 7, 12]
    for ids in (["7", "x"], ["7", "07"], ["7", "9" * 30], ["\u0667", "8"]):
        names = FileNames(ids)
        assert [names.number(i, k) for k, i in enumerate(ids)] == [1, 2]
