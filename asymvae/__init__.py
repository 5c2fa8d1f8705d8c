"""asymvae: inpaint millions of images with the asymmetric VAE on a Ray cluster."""
