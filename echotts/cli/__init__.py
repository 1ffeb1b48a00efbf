"""The command lines: they parse and check arguments and call the package; they contain no logic of their own."""
