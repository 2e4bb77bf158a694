"""The faults of storage that tests/chaos sets one by one."""

SINGLE = [
    {"unavailable": 0.05},
    {"unavailable": 0.3},
    {"reset": 0.3},
    {"stall": 0.02, "stall_s": 10},
    {"cut_body": 0.3},
    {"lost_answer": 0.5},
    {"doubled": 0.3},
    {"late_s": 1.0},
]
