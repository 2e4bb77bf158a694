"""`python -m fiqa_ray.synthetic FOLDER`: the faces and the recogniser of the demo, without its job."""

from __future__ import annotations

import argparse
from pathlib import Path

from fiqa_ray.synthetic.recognizer import make_demo


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m fiqa_ray.synthetic", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where faces/ and recognizer.pt go")
    faces, recognizer = make_demo(parser.parse_args().folder)
    print(f"faces in {faces}, a recogniser in {recognizer}")


if __name__ == "__main__":
    main()
