"""What a plan costs: time and memory of layers, of transitions between them, and of the pipeline."""
