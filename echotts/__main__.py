"""`echotts`: the same as the installed command `echotts`."""

from echotts.cli.main import console

if __name__ == "__main__":
    console()
