"""A run as it is seen from outside while it works: gauges, TensorBoard, MLflow; read from what is committed."""
