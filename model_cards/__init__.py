"""Templates of the cards: Jinja, filled by `hf_robust` and `hf_dit` from measured results."""
