"""`python -m examples.prune`."""

import sys

from .run import main

sys.exit(main())
