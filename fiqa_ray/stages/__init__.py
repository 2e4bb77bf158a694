"""fiqa_ray.stages"""
