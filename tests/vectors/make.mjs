// Writes participant_tokens.json: claims, and the header and payload segments they must become.
// An implementation of its own, so that the service is not compared with itself:
//   node tests/vectors/make.mjs > tests/vectors/participant_tokens.json
// The key pair is the published one of RFC 6979, A.2.6 (P-384): no secret, and never a live key.

const kid = "arn:aws:ivs:eu-central-1:123456789012:public-key/f99cde61-c2b0-4df3-8941-ca7d38acca1a";
const key = {
  kty: "EC",
  crv: "P-384",
  d: "6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D896D5724E4C70A825F872C9EA60D2EDF5",
  x: "EC3A4E415B4E19A4568618029F427FA5DA9A8BC4AE92E02E06AAE5286B300C64DEF8F0EA9055866064A254515480BC13",
  y: "8015D9B72D7D57244EA8EF9AC0C621896708A59367F9DFB9F54CA84B3F1C9DB1288B231C3AE0D4FE7344FD2533264720",
};
for (const part of ["d", "x", "y"]) key[part] = Buffer.from(key[part], "hex").toString("base64url");

const ascii = (value) =>
  JSON.stringify(value).replace(/[\u0080-\uffff]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
const segment = (value) => Buffer.from(ascii(value), "latin1").toString("base64url");

const endpoints = { events: "wss://events.example.test", whip: "https://f99084460c35.whip.example.test" };
const stage = "arn:aws:ivs:eu-central-1:123456789012:stage/LSC8P4Bq1vGb";

const requests = {
  "plain": { stageArn: stage, userId: "ana", duration: 720, capabilities: ["PUBLISH", "SUBSCRIBE"], attributes: { team: "red" } },
  "only a stage": { stageArn: stage },
  "empty user id, empty attributes": { stageArn: stage, userId: "", attributes: {} },
  "subscribe only": { stageArn: stage, userId: "viewer-1", capabilities: ["SUBSCRIBE"], duration: 1 },
  "publish only": { stageArn: stage, capabilities: ["PUBLISH"], duration: 20160 },
  "no capability": { stageArn: stage, capabilities: [] },
  "capabilities in the other order": { stageArn: stage, capabilities: ["SUBSCRIBE", "PUBLISH"] },
  "latin and greek": { stageArn: stage, userId: "Žofie Ünal", attributes: { "όνομα": "Ελένη", city: "Zürich" } },
  "emoji": { stageArn: stage, userId: "👩🏽‍🚀 crew", attributes: { mood: "🎉🎮", "🔑": "✓" } },
  "japanese, arabic, hebrew": { stageArn: stage, userId: "配信者", attributes: { ar: "مرحبا", he: "שלום", ja: "こんにちは" } },
  "quotes and backslashes": { stageArn: stage, userId: "a\"b\\c/d", attributes: { "\"": "\\\"", "</script>": "<b>&amp;</b>" } },
  "control characters": { stageArn: stage, userId: "\u0001\b\t\n\f\r\u001f", attributes: { "\u0000\n": "\r\n" } },
  "line separators and no-break space": { stageArn: stage, userId: "a\u2028b\u2029c\u00a0d", attributes: { bom: "\ufeff" } },
  "last code points": { stageArn: stage, userId: "\ud7ff\ue000\uffff\u{10000}\u{10ffff}" },
  "maximal user id": { stageArn: stage, userId: "u".repeat(128) },
  "maximal user id of emoji": { stageArn: stage, userId: "😀".repeat(128) },
  "maximal attributes": { stageArn: stage, attributes: { k: "v".repeat(1023) } },
  "maximal attributes of emoji": { stageArn: stage, attributes: { "": "😀".repeat(256) } },
  "attribute of nothing": { stageArn: stage, attributes: { "": "" } },
};

const issued = 1790000000;
const vectors = Object.entries(requests).map(([name, request], index) => {
  const participantId = "participant" + String(index).padStart(9, "0");
  const iat = issued + index;
  const exp = iat + 60 * (request.duration ?? 720);
  const asked = request.capabilities ?? ["PUBLISH", "SUBSCRIBE"];
  const capabilities = {};
  if (asked.includes("PUBLISH")) capabilities.allow_publish = true;
  if (asked.includes("SUBSCRIBE")) capabilities.allow_subscribe = true;
  const claims = {
    resource: stage, topic: stage.split("/")[1],
    events_url: endpoints.events, whip_url: endpoints.whip, capabilities, version: "1.0",
    exp, iat, jti: participantId, attributes: request.attributes ?? {},
  };
  if (request.userId !== undefined) claims.user_id = request.userId;
  return { name, request, participantId, iat, exp, claims, payloadSegment: segment(claims) };
});

const header = { alg: "ES384", typ: "JWT", kid };
console.log(ascii({ source: "tests/vectors/make.mjs", key, kid, headerSegment: segment(header), endpoints, vectors })
  .replace(/\{"name"/g, "\n{\"name\""));
