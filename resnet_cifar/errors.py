"""The one exception of this package."""


class UserError(Exception):
    """A mistake or a circumstance that the user can mend; `main.py` prints its sentence and no traceback."""
