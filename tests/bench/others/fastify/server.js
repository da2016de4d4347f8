// POST /v1/tokens as one would write it with fastify and fast-jwt: an API key, the request's fields
// checked by a schema, a token of Amazon IVS signed with ES384. No ledger, no policy, no bans, no key
// rotation. https://fastify.dev/docs/latest/, https://github.com/nearform/fast-jwt#readme

import { randomUUID, timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';
import Fastify from 'fastify';
import { createSigner } from 'fast-jwt';

const { PORT, KEY_FILE, KEY_ARN, API_KEY, EVENTS_URL, WHIP_URL } = process.env;
const sign = createSigner({ key: readFileSync(KEY_FILE, 'utf8'), algorithm: 'ES384', kid: KEY_ARN });
const expected = Buffer.from(`Bearer ${API_KEY}`);
const CLAIMS = { PUBLISH: 'allow_publish', SUBSCRIBE: 'allow_subscribe' };

const capabilities = { type: 'array', items: { type: 'string', enum: Object.keys(CLAIMS) } };
const attributes = { type: 'object', additionalProperties: { type: 'string' } };
const schema = {
  body: {
    type: 'object',
    required: ['stageArn'],
    properties: {
      stageArn: { type: 'string', pattern: '^arn:aws:ivs:[a-z0-9-]+:[0-9]+:stage/[a-zA-Z0-9-]+$' },
      userId: { type: 'string', maxLength: 128 },
      duration: { type: 'integer', minimum: 1, maximum: 20160, default: 720 },
      capabilities: { ...capabilities, default: ['PUBLISH', 'SUBSCRIBE'] },
      attributes: { ...attributes, default: {} },
    },
  },
  response: {
    200: {
      type: 'object',
      properties: {
        token: { type: 'string' },
        participantId: { type: 'string' },
        userId: { type: 'string' },
        attributes,
        capabilities,
        duration: { type: 'integer' },
        expirationTime: { type: 'string' },
      },
    },
  },
};

const app = Fastify();

app.addHook('onRequest', async (request, reply) => {
  const given = Buffer.from(request.headers.authorization ?? '');
  if (given.length !== expected.length || !timingSafeEqual(given, expected)) {
    return reply.code(401).send({ error: 'unauthorized' });
  }
});

app.post('/v1/tokens', { schema }, async (request) => {
  const wanted = request.body;
  const iat = Math.floor(Date.now() / 1000);
  const exp = iat + wanted.duration * 60;
  const participantId = randomUUID();
  const token = sign({
    exp,
    iat,
    jti: participantId,
    resource: wanted.stageArn,
    topic: wanted.stageArn.split('/')[1],
    events_url: EVENTS_URL,
    whip_url: WHIP_URL,
    capabilities: Object.fromEntries(wanted.capabilities.map((name) => [CLAIMS[name], true])),
    attributes: wanted.attributes,
    version: '1.0',
    user_id: wanted.userId,
  });
  return { ...wanted, token, participantId, expirationTime: new Date(exp * 1000).toISOString() };
});

await app.listen({ port: Number(PORT), host: '127.0.0.1' });
