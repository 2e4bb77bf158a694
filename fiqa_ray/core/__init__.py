"""fiqa_ray.core"""
