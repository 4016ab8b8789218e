"""Pure torch: encoder, masked autoencoder, detector net, and model folders."""
