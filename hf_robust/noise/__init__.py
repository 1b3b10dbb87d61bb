"""Label noise: drawn, observed from people, estimated from predictions."""
