"""Training many runs: by worker processes of this machine, or as jobs of Slurm."""
