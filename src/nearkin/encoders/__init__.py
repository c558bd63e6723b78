"""Encoders: a row's input to its embedding. Each owns its preprocessing for training and for
evaluation."""
