"""fiqa_ray.sources"""
