"""Pure torch: the encoder, the masked autoencoder and the folders they are kept in."""
