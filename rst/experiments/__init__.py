"""The reproduction of the paper: its runs, tables and figures. It needs a clone of the project, for its configs."""
