"""The command lines: parse, check, call. They hold no logic of their own."""
