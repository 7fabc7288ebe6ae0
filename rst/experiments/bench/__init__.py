"""The benchmark: what the method, the loader and whole runs cost, as ratios to what people use without them.

Each file is a part that runs alone (`rst.experiments.bench.parts`). Contenders are timed in turns in one process
(`turns`), and a part's figures become a JSON file and a Markdown table (`table`).
"""
