"""The one exception for mistakes that the user can mend."""


class DyCokeError(ValueError):
    """A mistake in a value, a file or an option that the user gave.

    The message is one line that says what is wrong, where, both values, and what to do. The command
    line prints it and exits with status 2; every other exception is a bug and keeps its trace.
    """


class UnavailableError(DyCokeError):
    """Not the request's fault, and not for ever: try again later, or another server."""


class QueueFullError(UnavailableError):
    """The waiting line is full: try again later."""


class TimeLimitError(UnavailableError):
    """It took longer than it may: try again later, or ask for less."""
