"""When a share of failed images says that the set-up is wrong."""

import pytest

from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.errors import TooManyFailedError, UserError


@pytest.mark.parametrize(
    ("share", "images", "errors", "at_end", "stops"),
    [
        (0.5, 0, 999, False, False),
        (0.5, 0, 1000, False, True),
        (0.5, 500, 500, False, False),
        (0.5, 499, 501, False, True),
        (0.5, 2, 3, False, False),
        (0.5, 2, 3, True, True),
        (0.5, 3, 3, True, False),
        (0.0, 10**6, 1, False, True),
        (0.0, 10**6, 0, True, False),
        (1.0, 0, 5000, False, False),
        (1.0, 0, 5, True, True),
    ],
)
def test_the_share_is_judged(share, images, errors, at_end, stops):
    limit = ErrorLimit(max_error_share=share)
    if not stops:
        limit.check(images, errors, "too dark", at_end=at_end)
        return
    with pytest.raises(TooManyFailedError, match=r"images failed.*the first one: too dark"):
        limit.check(images, errors, "too dark", at_end=at_end)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_lies_between_0_and_1(share):
    with pytest.raises(UserError, match=r"expected a share in \[0, 1\]"):
        ErrorLimit(max_error_share=share)
