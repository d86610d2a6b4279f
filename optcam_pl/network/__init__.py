"""The network that is explained: pixels in, logits out, and where its features are."""
