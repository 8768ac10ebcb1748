"""`python -m deploy.image [test …]`: see build.py."""

import sys

from deploy.image.build import main

sys.exit(main(sys.argv[1:]))
