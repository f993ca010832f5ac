"""L0 regularization of convolutional networks with hard-concrete gates (arXiv 1712.01312)."""


def __getattr__(name: str):
    if name == "load":  # imported on use: torch and Lightning take seconds
        from sparsereg.checkpoint import load

        return load
    raise AttributeError(f"module 'sparsereg' has no attribute {name!r}")
