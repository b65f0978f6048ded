"""`python -m cmray`."""

from cmray.cli.main import main

main()
