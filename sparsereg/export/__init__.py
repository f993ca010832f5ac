"""The cut network as files, and what that gained."""
