"""The command line: one command a stage, and the only place that knows all of them."""
