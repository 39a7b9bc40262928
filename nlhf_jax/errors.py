"""The one exception that means: the user can put this right."""


class UserError(Exception):
    """Bad input: a file, a setting or a checkpoint that cannot be used as it is.

    The message is one sentence that names the file and line, or the setting, says what was met and
    what was wanted. The command line prints it without a traceback and exits with code 2.
    """
