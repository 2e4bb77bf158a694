"""fiqa_ray.report"""
