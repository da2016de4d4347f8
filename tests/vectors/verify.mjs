// Verifies tokens without any Python, and reads them as the web SDK does: atob and JSON.parse, with no
// UTF-8 step. Standard input: {"key": <public JWK>, "tokens": [...]}; output: one verdict for each.
import { createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";

const { key, tokens } = JSON.parse(readFileSync(0, "utf8"));
const publicKey = createPublicKey({ key, format: "jwk" });
const read = (segment) => JSON.parse(atob(segment.replaceAll("-", "+").replaceAll("_", "/")));

console.log(JSON.stringify(tokens.map((token) => {
  const [header, payload, signature] = token.split(".");
  const raw = Buffer.from(signature, "base64url");
  return {
    valid: verify("sha384", Buffer.from(`${header}.${payload}`), { key: publicKey, dsaEncoding: "ieee-p1363" }, raw),
    signatureBytes: raw.length,
    header: read(header),
    claims: read(payload),
  };
})));
