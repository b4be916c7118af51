"""`python -m regionhash` is the command `regionhash`."""

from regionhash.cli import main

main()
