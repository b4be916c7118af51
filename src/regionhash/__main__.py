"""`python -m regionhash` is the command `regionhash`."""

from regionhash.cli.commands import main

main()
