"""The encoder, and the models that pretrain it."""
