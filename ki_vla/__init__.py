"""The knowledge-insulated vision-language-action model (arXiv 2505.23705), in torch."""
