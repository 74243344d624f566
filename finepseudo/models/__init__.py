"""The two encoders (f_A: one embedding per frame, f_E: class logits per clip) and their weights as bytes."""
