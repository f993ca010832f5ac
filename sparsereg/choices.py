"""The names one can choose from, and the defaults that a check must know; no torch."""

COSTS = ("channels", "params", "macs", "weights", "latency")
BACKENDS = ("onnxruntime", "torch")
ROUNDINGS = (1, 8, 16)  # channels that round_to=auto tries
ACTIVATIONS = ("relu", "leakyrelu", "gelu", "tanh")
SAMPLING = ("per_sample", "per_batch")
LIBRARIES = ("sparsereg", "torchvision", "timm")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
TARGET_WARMUP, SETTLED = 0.4, 0.4  # shares of the run, if target_warmup, settle_epochs are null
NORMALISE = ("outside", "inside")  # where exported files have their images normalised
