"""Errors that are the user's to mend: shown as one line, exit code 2, never a traceback."""


class CoritError(Exception):
    """Something the user can put right; the message says what is wrong and what to do."""


class NotMultiplied(CoritError):
    """An arithmetic that cannot be had: on this machine, or of these weights."""
