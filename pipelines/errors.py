"""The one error that is addressed to a person.

Everything a user can get wrong (a missing file, an unknown recipe key, a folder that belongs to another run) raises
`UserError` with a single line that says what is wrong and, where possible, what to do. The command prints that line and
exits with code 2; anything else that escapes is a defect of ours and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake of the user's, told in one line."""
