"""What a run will take, before there are machines for it: memory, time and traffic of each chip."""
