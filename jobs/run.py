"""Entry point of a Ray job: the `fiqa-ray` command, run on the cluster.

ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/run.py run jobs/vggface2.yaml run_uri=s3://...
"""

from fiqa_ray.cli import main

if __name__ == "__main__":
    main()
