"""``python -m mmcore``: the same as the command ``mmcore``."""

from __future__ import annotations

from mmcore.cli import main

if __name__ == "__main__":
    main()
