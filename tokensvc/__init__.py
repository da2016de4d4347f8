"""tokensvc issues Amazon IVS Real-Time participant tokens, signed locally with ES384."""
