"""What ends a piece of work on a version that the group is leaving behind."""


class Disturbed(Exception):
    """What was being fetched, read or written is no longer wanted, or nobody has it."""
