"""The one exception that is addressed to the user."""

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """Something the user can mend.

    The message is one clear sentence that names the file or field, what was wrong with it and what was
    expected. The command line prints it without a traceback.
    """


def did_you_mean(word: str, known: Sequence[str], otherwise: str, prefix: str = "") -> str:
    """The end of a message about a word that isn't known: the nearest one that is, with ``prefix`` before it.

    Args:
        otherwise: what to say where none is near.
    """
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else otherwise
