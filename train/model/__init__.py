"""The model: brain module, UNet with LoRA, VAE, picture encoder."""
