"""How far a candidate is from its reference: KL divergence, top-1, perplexity, on the package's text."""
