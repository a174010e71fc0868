"""Division of a data set: by class, reproducibly, with equal images on one side."""

import numpy as np
import pyarrow as pa
import pytest

from ray_wsss.errors import UserError
from ray_wsss.stages.split import check_fractions, divide


def table(labels, digests=None) -> pa.Table:
    digests = [k.to_bytes(16, "big") for k in (range(len(labels)) if digests is None else digests)]
    return pa.table(
        {
            "digest": pa.chunked_array([pa.array(digests, pa.binary(16))]),
            "image_labels": pa.chunked_array([pa.array(labels, pa.list_(pa.int32()))]),
        }
    )


def random_labels(count: int, seed: int = 0) -> list:
    """Several labels an image, of classes from frequent to rare; some images have none, or unknown labels."""
    rng = np.random.default_rng(seed)
    chances = [0.5, 0.2, 0.05, 0.01]
    labels: list = [[c for c, chance in enumerate(chances) if rng.random() < chance] for _ in range(count)]
    for k in rng.choice(count, count // 10, replace=False):
        labels[k] = None
    return labels


@pytest.mark.parametrize("fractions", [(0.8, 0.2), (0.7, 0.2, 0.1)])
def test_every_class_is_shared_out_in_proportion(fractions):
    labels = random_labels(2000)
    parts = divide(table(labels), fractions, seed=3)
    assert sorted(np.concatenate(parts)) == list(range(2000))

    def shares(belongs) -> np.ndarray:
        counts = [sum(belongs(labels[k]) for k in part) for part in parts]
        return np.array(counts) - np.array(fractions) * sum(counts)

    # Sizes follow from the classes, and so are less exact than these.
    assert (np.abs(shares(lambda found: True)) <= 20).all()
    for c in range(4):
        # A random division of the most frequent class would be off by 14 in the standard deviation.
        assert (np.abs(shares(lambda found, c=c: c in (found or ()))) <= 1).all()
    assert (np.abs(shares(lambda found: found is None)) <= 1).all()
    assert (np.abs(shares(lambda found: found == [])) <= 1).all()


def test_seeds_make_divisions():
    images = table(random_labels(300))
    first, again, other = (divide(images, (0.5, 0.5), seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], other[0])


def test_equal_images_stay_together_and_are_counted():
    digests = np.random.default_rng(0).integers(0, 150, 600)
    parts = divide(table(random_labels(600), digests.tolist()), (0.75, 0.25), 0)
    first, second = (set(digests[part].tolist()) for part in parts)
    assert first
    assert second
    assert not first & second
    assert 430 < len(parts[0]) < 470


def test_few_images_of_a_class_reach_every_part_that_can_have_one():
    parts = divide(table([[0]] * 2 + [[1]] * 8), (0.5, 0.5), 0)
    assert [sum(k < 2 for k in part) for part in parts] == [1, 1]
    assert [len(part) for part in parts] == [5, 5]


@pytest.mark.parametrize("fractions", [(0.8, 0.3), (1.0, 0.0), (0.5,), (1.2, -0.2)])
def test_fractions_that_do_not_fit_are_refused(fractions):
    with pytest.raises(UserError, match="--fractions"):
        check_fractions(fractions, 2)
