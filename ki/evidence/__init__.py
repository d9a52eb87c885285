"""The paper's comparisons, run in the simulator: a matrix of recipes and seeds, its cells, figures, verdicts."""
