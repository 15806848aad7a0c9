"""Drawing pictures with a base and its adapter: schedulers, prompt grids."""
