"""`python -m infty_tools` is `infty`: for launchers that start a module."""

from infty_tools.cli import main

main()
