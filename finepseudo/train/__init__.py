"""Training of one encoder: session, objectives, engine, checkpoints, loop, inference. Knows no launcher."""
