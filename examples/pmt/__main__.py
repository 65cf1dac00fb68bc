"""`python -m examples.pmt`."""

import sys

from .run import main

sys.exit(main())
