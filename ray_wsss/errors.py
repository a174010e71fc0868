"""The one exception that is addressed to the user."""


class UserError(Exception):
    """Something the user can mend.

    The message is one clear sentence that names the file or field, what was wrong with it and what was
    expected. The command line prints it without a traceback.
    """
