"""The model: brain module, UNet with LoRA, VAE and picture encoder."""
