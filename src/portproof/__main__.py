"""``python -m portproof``: the same as the command ``portproof``."""

from portproof.cli import main

main()
