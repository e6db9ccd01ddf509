"""The exceptions of this package."""


class UserError(Exception):
    """A mistake or a circumstance that the user can mend; `main.py` prints its sentence and no traceback."""


class Diverged(UserError):
    """A loss, a gradient or a state is not finite."""
