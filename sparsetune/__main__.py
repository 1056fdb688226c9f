"""``python -m sparsetune``, for launchers that start modules."""

from sparsetune.cli import main

main()
