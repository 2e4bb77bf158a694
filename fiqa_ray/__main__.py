"""`python -m fiqa_ray`: the command `fiqa-ray`."""

import sys

from fiqa_ray.cli import main

sys.exit(main())
