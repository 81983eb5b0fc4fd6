// A certified OpenID provider as a test issuer: node issuer.mjs DIR PORT REDIRECT
// DIR holds server.crt and server.key. A person has the role that is the person's name; the password is whatever is typed.
import fs from 'node:fs';
import https from 'node:https';
import { Provider } from 'oidc-provider';

const [dir, port, redirect] = process.argv.slice(2);
const provider = new Provider(`https://127.0.0.1:${port}`, {
  clients: [{ client_id: 'gateway', redirect_uris: [redirect], token_endpoint_auth_method: 'none', response_types: ['code'], grant_types: ['authorization_code'] }],
  cookies: { keys: ['test'] },
  conformIdTokenClaims: false,
  claims: { openid: ['sub', 'realm'], profile: [] },
  pkce: { required: () => true },
  findAccount: (ctx, id) => ({ accountId: id, claims: async () => ({ sub: id, realm: { roles: ['staff', id] } }) }),
});
https.createServer({ cert: fs.readFileSync(`${dir}/server.crt`), key: fs.readFileSync(`${dir}/server.key`) }, provider.callback())
  .listen(Number(port), '127.0.0.1', () => console.log('ready'));
