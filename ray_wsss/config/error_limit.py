"""How many images may fail before a run stops."""

from dataclasses import dataclass

from ray_wsss.errors import TooManyFailedError, UserError

JUDGED_AFTER = 1000
"""Images after which the share of failed ones is judged for the first time, and then all the time."""


@dataclass(frozen=True, kw_only=True)
class ErrorLimit:
    """Largest share of images that may fail: a failed image stops nothing, a wrong set-up stops the run."""

    max_error_share: float = 0.5
    """Largest share of images that may fail, in [0, 1]; if more fail, the run stops.
    It is judged from 1,000 images on, and at the end. If all fail, that is always an error."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_error_share <= 1:
            raise UserError(f"max_error_share is {self.max_error_share:g}; expected a share in [0, 1]")

    def check(self, images: int, errors: int, first_reason: str, *, at_end: bool = False) -> None:
        """Raise TooManyFailedError if too many images failed.

        Args:
            images: images that did not fail.
            errors: images that failed.
            first_reason: why the first of them did.
            at_end: there are no further images, so that fewer than `JUDGED_AFTER` suffice.
        """
        done = images + errors
        if not errors or (done < JUDGED_AFTER and not at_end):
            return
        why = f"the first one: {first_reason}"
        if at_end and not images:
            raise TooManyFailedError(f"all {errors:,} images failed; {why}")
        if errors > self.max_error_share * done:
            raise TooManyFailedError(
                f"{errors:,} of {done:,} images failed; "
                f"expected a share of at most {self.max_error_share:g} (--max-error-share); {why}"
            )
