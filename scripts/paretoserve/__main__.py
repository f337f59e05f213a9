"""Let `python -m paretoserve` be `paretoserve`."""

import sys

from paretoserve.cli import main

sys.exit(main())
