// POST /v1/tokens as one would write it with express and jsonwebtoken: an API key, the request's fields
// checked, a token of Amazon IVS signed with ES384. No ledger, no policy, no bans, no key rotation.
// https://expressjs.com/en/5x/api.html, https://github.com/auth0/node-jsonwebtoken#readme

import { createPrivateKey, randomUUID, timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';
import express from 'express';
import jwt from 'jsonwebtoken';

const { PORT, KEY_FILE, KEY_ARN, API_KEY, EVENTS_URL, WHIP_URL } = process.env;
const key = createPrivateKey(readFileSync(KEY_FILE));
const expected = Buffer.from(`Bearer ${API_KEY}`);
const CLAIMS = { PUBLISH: 'allow_publish', SUBSCRIBE: 'allow_subscribe' };

function authenticate(request, response, next) {
  const given = Buffer.from(request.get('authorization') ?? '');
  if (given.length === expected.length && timingSafeEqual(given, expected)) return next();
  response.status(401).json({ error: 'unauthorized' });
}

function faultOf({ stageArn, userId, duration, capabilities, attributes }) {
  if (typeof stageArn !== 'string' || !stageArn.includes(':stage/')) return 'stageArn';
  if (userId !== undefined && (typeof userId !== 'string' || userId.length > 128)) return 'userId';
  if (!Number.isInteger(duration) || duration < 1 || duration > 20160) return 'duration';
  if (!Array.isArray(capabilities) || !capabilities.every((name) => name in CLAIMS)) return 'capabilities';
  if (Object.values(attributes).some((value) => typeof value !== 'string')) return 'attributes';
  return null;
}

const app = express();
app.disable('x-powered-by');
app.disable('etag');
app.use(express.json());

app.post('/v1/tokens', authenticate, (request, response) => {
  const wanted = { duration: 720, capabilities: ['PUBLISH', 'SUBSCRIBE'], attributes: {}, ...request.body };
  const fault = faultOf(wanted);
  if (fault) return response.status(400).json({ error: `${fault} is not valid` });
  const iat = Math.floor(Date.now() / 1000);
  const exp = iat + wanted.duration * 60;
  const participantId = randomUUID();
  const token = jwt.sign(
    {
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
    },
    key,
    { algorithm: 'ES384', keyid: KEY_ARN },
  );
  response.json({
    token,
    participantId,
    userId: wanted.userId,
    attributes: wanted.attributes,
    capabilities: wanted.capabilities,
    duration: wanted.duration,
    expirationTime: new Date(exp * 1000).toISOString(),
  });
});

app.listen(Number(PORT), '127.0.0.1');
