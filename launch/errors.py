"""What ends a launch command with one line on standard error."""


class LaunchError(Exception):
    """A failure; its message is one line that names the thing, the place and the remedy. Exit code 1."""


class UsageError(LaunchError):
    """A wrong call or a wrong configuration file. Exit code 2."""
