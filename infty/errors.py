"""The one exception that means: the person using infty can fix this."""


class UserError(Exception):
    """A mistake in what the user gave us: a file, a config, an option, an environment.

    The message says what was wrong, where, and what to do. The command line prints it without a stack trace
    and exits with status 2.
    """
