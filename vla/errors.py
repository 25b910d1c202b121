"""The root of the errors that are for the user: their message alone says what to do."""


class VLAError(ValueError):
    """A value, file or setting is wrong; the message says what was wrong, what exists and what to do."""
