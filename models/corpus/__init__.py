"""Text pairs for training sentence encoders, made from packages of public registries."""
