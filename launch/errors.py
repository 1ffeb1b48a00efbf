"""Errors that end a launch command with one line on standard error."""


class LaunchError(Exception):
    """A failure; its message is one line with the object, the location and the remedy. Exit code 1."""


class UsageError(LaunchError):
    """A wrong call or an invalid configuration file. Exit code 2."""
