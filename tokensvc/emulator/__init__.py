"""A local stand-in for Amazon IVS Real-Time, for development and tests.

It answers the control plane's operations over IVS's own wire protocol (rest-json with Signature
Version 4) and the events socket that the official clients open, and verifies their tokens with
libraries that the service does not sign with. It shares `tokensvc.tokens` with the service and
nothing else. It is not a media plane, and it authenticates nobody: listen on the loopback only.
"""
