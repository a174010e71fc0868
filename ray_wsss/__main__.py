"""``python -m ray_wsss``: the command line, where the package is on the path but not installed."""

import sys

from ray_wsss.cli import main

sys.exit(main())
