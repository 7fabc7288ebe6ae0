"""The tables and figures of the paper: their files, the runs that they name, and what these runs cost."""
