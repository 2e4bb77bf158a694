"""fiqa_ray.models"""
