"""What is kept of a run: its id, its record, and the record's mirror at Weights & Biases."""
