"""What a token is: claims, limits, JWS assembly, inspection.

A participant token is an ES384 JWT (RFC 7519, RFC 7518 section 3.4) whose `kid` is the ARN of a public
key imported into Amazon IVS and whose payload says which participant may do what on which stage
(IVS Real-Time User Guide, "Distribute Tokens"). This package knows all of that and nothing else: it
does no I/O, holds no private key, and is told the time and given its randomness.
"""
