"""Images in, logits out."""
