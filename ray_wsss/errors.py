"""`UserError`, the one exception whose message is for the user, a kind of it, and help with its wording."""

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """A mistake or problem that the user can fix.

    The message is one clear sentence that names the file or field, what was wrong with it and what was
    expected. The command line prints it without a traceback.
    """


class TooManyFailedError(UserError):
    """So many images failed that the set-up must be wrong, not the images."""


def did_you_mean(word: str, known: Sequence[str], otherwise: str, prefix: str = "") -> str:
    """End of a message about an unknown word: asks whether the user meant the most similar known one.

    Args:
        otherwise: text to return if no known word is similar.
        prefix: text to put before the similar word.
    """
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else otherwise
