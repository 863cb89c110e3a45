"""The one exception that means "the user can put this right"."""


class UserError(ValueError):
    """A mistake in a config, a path or the data, told in at most a few lines.

    The message names the field or file, the value found there, and the way out. Command-line
    programs print it without a traceback and exit with code 2.
    """
