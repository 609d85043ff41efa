"""The one exception for what the user can fix, and the one warning."""


class UserError(ValueError):
    """The user's input or configuration is at fault.

    The message is one clear sentence that names the file, the column or key, and the value, and says what to do.
    The ``recsys`` command prints it on standard error and exits with code 2; anything else that escapes exits with 1.
    """


class Notice(UserWarning):
    """The work goes on, in a way that the user should know of. The ``recsys`` command prints it on standard error."""
