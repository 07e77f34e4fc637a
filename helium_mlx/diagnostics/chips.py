"""The memory bandwidth of chips, by the name that MLX has for them, in bytes a second.

From Apple's technical specifications and NVIDIA's data sheets. Where a name stands for several versions, the figure is
that of the fastest, so that a share is never too large.
"""

BANDWIDTH = {
    "Apple M1": 68.25e9,
    "Apple M1 Pro": 200e9,
    "Apple M1 Max": 400e9,
    "Apple M1 Ultra": 800e9,
    "Apple M2": 100e9,
    "Apple M2 Pro": 200e9,
    "Apple M2 Max": 400e9,
    "Apple M2 Ultra": 800e9,
    "Apple M3": 100e9,
    "Apple M3 Pro": 150e9,
    "Apple M3 Max": 400e9,
    "Apple M3 Ultra": 819e9,
    "Apple M4": 120e9,
    "Apple M4 Pro": 273e9,
    "Apple M4 Max": 546e9,
    "Apple M5": 153e9,
    "Apple M5 Pro": 307e9,
    "Apple M5 Max": 614e9,
    "NVIDIA A100-SXM4-40GB": 1555e9,
    "NVIDIA A100-SXM4-80GB": 2039e9,
    "NVIDIA GeForce RTX 4090": 1008e9,
    "NVIDIA H100 80GB HBM3": 3350e9,
    "NVIDIA H200": 4800e9,
    "NVIDIA L4": 300e9,
}
