"""A run as it is seen from outside while it works: gauges, TensorBoard, MLflow, W&B; read from what is committed."""
