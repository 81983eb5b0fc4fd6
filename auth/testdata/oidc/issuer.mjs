// A certified OpenID provider as a test issuer: node issuer.mjs DIR PORT
// DIR holds server.crt, server.key, ca.crt (of clients' certificates) and clients.json. Beside what the provider does itself:
//   POST /test/approve?user_code=X   a person approves a device (RFC 8628)
//   POST /test/down?on=1             every answer is 503
//   POST /test/skew?seconds=N        the issuer's clock differs from everybody's by N
//   POST /test/nonce?on=1            DPoP proofs need a nonce
// The grants jwt-bearer (RFC 7523) and token-exchange (RFC 8693), which the provider does not have, are added below.
import fs from 'node:fs';
import https from 'node:https';
import { createHash } from 'node:crypto';
import * as jose from 'jose';
import { Provider, errors } from 'oidc-provider';

const [dir, port] = process.argv.slice(2);
const issuer = `https://127.0.0.1:${port}`;
const read = (name) => fs.readFileSync(`${dir}/${name}`);
const clients = JSON.parse(read('clients.json'));
const realNow = Date.now.bind(Date);
const knobs = { down: 0, skew: 0, nonce: 0 };
Date.now = () => realNow() + knobs.skew * 1000;

const { privateKey } = await jose.generateKeyPair('ES256', { extractable: true });
const jwk = { ...(await jose.exportJWK(privateKey)), use: 'sig', alg: 'ES256', kid: 'issuer-1' };
const { d, ...publicJWK } = jwk;

const provider = new Provider(issuer, {
  clients,
  jwks: { keys: [jwk] },
  cookies: { keys: ['test'] },
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  clientAuthMethods: ['client_secret_basic', 'client_secret_post', 'private_key_jwt', 'tls_client_auth', 'none'],
  scopes: ['openid', 'offline_access', 'iot'],
  rotateRefreshToken: true,
  issueRefreshToken: async (ctx, client, code) => client.grantTypeAllowed('refresh_token'),
  findAccount: (ctx, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
  ttl: { ClientCredentials: 300, AccessToken: 300, DeviceCode: 60, IdToken: 300, RefreshToken: 3600, Grant: 3600 },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    deviceFlow: { enabled: true },
    dPoP: { enabled: true, nonceSecret: Buffer.alloc(32, 7), requireNonce: () => Boolean(knobs.nonce) },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({ scope: 'iot', audience: 'urn:iot', accessTokenTTL: 300, accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } } }),
    },
    mTLS: {
      enabled: true,
      certificateBoundAccessTokens: true,
      tlsClientAuth: true,
      getCertificate: (ctx) => ctx.req.socket.getPeerX509Certificate()?.toString(),
      certificateAuthorized: (ctx) => ctx.req.socket.authorized,
      certificateSubjectMatches: (ctx, property, expected) =>
        property === 'tls_client_auth_subject_dn' && ctx.req.socket.getPeerX509Certificate().subject === expected,
    },
  },
});
provider.on('server_error', (ctx, err) => console.error(err));
provider.on('grant.error', (ctx, err) => console.error(err.message, err.error_description, err.error_detail));

const fingerprint = (text) => createHash('sha256').update(text).digest('hex').slice(0, 16);

async function grant(name, params, check) {
  provider.registerGrantType(name, async (ctx) => {
    const subject = await check(ctx.oidc.params, ctx.oidc.client);
    ctx.body = { access_token: `${ctx.oidc.client.clientId}:${subject}`, token_type: 'Bearer', expires_in: 300 };
  }, params);
}

const spent = new Set();
await grant('urn:ietf:params:oauth:grant-type:jwt-bearer', ['assertion', 'scope'], async (params, client) => {
  const keys = jose.createLocalJWKSet(client.jwks);
  const { payload } = await jose.jwtVerify(params.assertion, keys, { audience: `${issuer}/token`, issuer: client.clientId, currentDate: new Date(Date.now()) })
    .catch((err) => { throw new errors.InvalidGrant(err.message); });
  if (spent.has(payload.jti)) throw new errors.InvalidGrant('assertion used before');
  spent.add(payload.jti);
  return payload.sub;
});
await grant('urn:ietf:params:oauth:grant-type:token-exchange', ['subject_token', 'subject_token_type', 'audience'], async (params) => {
  if (params.subject_token_type !== 'urn:ietf:params:oauth:token-type:jwt') throw new errors.InvalidRequest('subject_token_type');
  await jose.jwtVerify(params.subject_token, jose.createLocalJWKSet({ keys: [publicJWK] }), { issuer, audience: 'urn:iot', currentDate: new Date(Date.now()) })
    .catch((err) => { throw new errors.InvalidGrant(err.message); });
  return fingerprint(params.subject_token);
});

async function approve(userCode) {
  const code = await provider.DeviceCode.findByUserCode(userCode.replace('-', ''), { ignoreExpiration: true, ignoreSessionBinding: true });
  const given = new provider.Grant({ accountId: 'plant', clientId: code.clientId });
  given.addOIDCScope('openid offline_access');
  Object.assign(code, { accountId: 'plant', grantId: await given.save(), authTime: Math.floor(Date.now() / 1000), scope: 'openid offline_access', claims: {}, inFlight: true });
  await code.save();
}

const app = provider.callback();
const options = { cert: read('server.crt'), key: read('server.key'), ca: read('ca.crt'), requestCert: true, rejectUnauthorized: false };
https.createServer(options, async (req, res) => {
  const url = new URL(req.url, issuer);
  if (url.pathname.startsWith('/test/')) {
    const knob = url.pathname.slice('/test/'.length);
    if (knob === 'approve') await approve(url.searchParams.get('user_code'));
    else knobs[knob] = Number(url.searchParams.get('on') ?? url.searchParams.get('seconds'));
    return res.end();
  }
  res.setHeader('Date', new Date(Date.now()).toUTCString());
  if (knobs.down) return res.writeHead(503, { 'Retry-After': '2' }).end();
  return app(req, res);
}).listen(Number(port), '127.0.0.1', () => console.log('ready'));
