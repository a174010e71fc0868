"""review.csv: what it may say, and what is refused with the line's number."""

from pathlib import Path

import pytest

from ray_wsss.errors import UserError
from ray_wsss.runs.curation.review import Review, read_review

IDS = ["a", 'b, "c"', "two\nlines", "d", "é"]


def read(tmp_path: Path, content: str | bytes) -> Review:
    path = tmp_path / "review.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_review(path, IDS, Path("data/photos"))


def test_verdicts_in_any_order_of_columns(tmp_path: Path) -> None:
    content = (
        '\ufefftime,verdict,image_id\r\n2026-01-01T00:00:00Z,reject,"b, ""c"""\r\n,accept,a\r\n,reject,é\r\n'
    )
    found = read(tmp_path, content)
    assert found.rejected == {'b, "c"', "é"}
    assert found.accepted == {"a"}
    assert found.describe(2, 200) == "2 of 200 images left out: rejected in review.csv"


def test_only_the_rejected_images_decide_a_result(tmp_path: Path) -> None:
    first = read(tmp_path, "image_id,verdict\na,reject\nd,accept\n").settings()
    assert read(tmp_path, "image_id,verdict,time\na,reject,now\n").settings() == first
    assert read(tmp_path, "image_id,verdict\nd,reject\n").settings() != first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image_id,verdict\na,accept\nx,reject\n", "line 3: there is no image 'x' in data/photos"),
        ("image_id,verdict\na,maybe\n", "line 2: the verdict is 'maybe'; expected accept or reject"),
        ('image_id,verdict\n"two\nlines",reject\na\n', "line 4: the verdict is ''"),
        ("image_id\na\n", "line 1: there is no column 'verdict'; expected image_id,verdict"),
        ("", "line 1: there is no column 'image_id'"),
        ("image_id,verdict\na,reject\na,accept\n", "line 3: the image 'a' has the verdict reject in a line"),
        ('image_id,verdict\n"a"x,reject\n', "line 2: "),
        (b"image_id,verdict\n\xff,reject\n", "not UTF-8"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, content)
    assert message in str(error.value)
    assert "--review" in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"review\.csv: no such file"):
        read_review(tmp_path / "review.csv", IDS, tmp_path)
