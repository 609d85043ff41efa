"""The one exception for what the user can fix."""

from data_pipelines.redaction import conceal


class UserError(ValueError):
    """The user's input or configuration is at fault.

    The message is one clear sentence that names the file, the column or key, and the value, and says what to do.
    The ``recsys`` command prints it on standard error and exits with code 2; anything else that escapes exits with 1.
    Credentials in it are replaced (:func:`data_pipelines.redaction.conceal`): it may be logged, stored and shown.
    """

    def __init__(self, message: str) -> None:
        super().__init__(conceal(message))
