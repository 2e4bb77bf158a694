"""`python -m fiqa_ray.synthetic FOLDER`: the faces and the recogniser of the demo."""

from __future__ import annotations

import sys
from pathlib import Path

from fiqa_ray.synthetic.recognizer import make_demo

make_demo(Path(sys.argv[1]))
