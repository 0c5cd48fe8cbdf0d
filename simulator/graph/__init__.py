"""What has to be computed, and what it can be computed on: the work graph and the machine graph."""
