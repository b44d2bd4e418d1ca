"""The one error that is the user's to mend."""


class InputError(ValueError):
    """
    Something handed in from outside (an argument, a file, an environment) is not usable.

    The message is one line that says what is wrong and what would be right; commands print it and exit with status 2.
    """
