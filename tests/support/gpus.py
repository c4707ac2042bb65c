"""GPUs as the driver describes them."""

from runtimes import nvidia

A6000 = nvidia.Gpu(
    index=0,
    name="NVIDIA RTX A6000",
    uuid="0",
    compute_capability=(8, 6),
    memory_bytes=48 * 2**30,
    multiprocessors=84,
    driver="580.65.06",
    cuda=(13, 0),
)
