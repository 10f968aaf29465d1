"""``python -m msfusion`` is the command line."""

from msfusion.cli import main

main()
