"""Errors that a user can act on.

Every message names the thing, its value, the bound and what to do. The command line prints the message alone and
leaves with exit code 2; anything that is not a `LangevinError` is a defect of ours and keeps its traceback.
"""


class LangevinError(Exception):
    """Base of every error that the caller can mend."""


class RequestError(LangevinError, ValueError):
    """An option of a request is out of its bounds, or two options contradict each other."""


class CheckpointError(LangevinError):
    """A weight file is wrong, truncated, foreign, or does not say enough about itself."""


class DataError(LangevinError):
    """Training or evaluation data cannot be read or does not fit what was asked for."""


class NotFiniteError(LangevinError, ArithmeticError):
    """A network gave NaN or infinity, in float32 too."""
