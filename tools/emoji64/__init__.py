"""Makes the embedded base ``emoji-64``: pictures, VAE, latents, UNet with text encoder, export, quality."""
