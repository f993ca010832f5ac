"""L0 regularization of convolutional networks with hard-concrete gates (arXiv 1712.01312)."""


def __getattr__(name: str):
    # imported on use: torch and Lightning take seconds
    if name == "load":
        from sparsereg.checkpoint import load

        return load
    if name == "insert_gates":
        from sparsereg.surgery.insert import insert_gates

        return insert_gates
    raise AttributeError(f"module 'sparsereg' has no attribute {name!r}")
