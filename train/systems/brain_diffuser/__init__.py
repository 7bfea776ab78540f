"""Brain-Diffuser (Ozcelik and VanRullen 2023) on windows: ridge regressions to tokens and latents."""
