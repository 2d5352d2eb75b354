"""What a user may meet."""


class UserError(Exception):
    """A mistake that the user can mend: its text says in one sentence what is wrong, where, and what to do."""


class Unable(UserError):
    """A model was asked for what its checkpoint has no weights for."""
