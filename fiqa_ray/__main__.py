"""`python -m fiqa_ray`: the `fiqa-ray` command."""

from fiqa_ray.cli import main

if __name__ == "__main__":
    main()
