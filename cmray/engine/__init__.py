"""F3: training, checkpoints, sampling and measuring in one plain process; it does not know where it runs."""
