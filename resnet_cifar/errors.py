"""The exceptions of this package."""


class UserError(Exception):
    """A mistake or circumstance that the user can fix.

    Its message is one sentence with the value, what is allowed, and the fix. Commands print it
    without a traceback and exit with 1.
    """


class Diverged(UserError):
    """A loss, a gradient or a state is not finite."""
