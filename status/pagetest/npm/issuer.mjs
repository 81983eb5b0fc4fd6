// A certified OpenID provider as a test issuer: node issuer.mjs CERTIFICATE KEY
// It prints its port, reads the one redirect URL that it is to send people back to, prints "ready", and ends with its input.
// A person has the role that is the person's name; the password is whatever is typed.
import fs from 'node:fs';
import https from 'node:https';
import readline from 'node:readline';
import { Provider } from 'oidc-provider';

const [cert, key] = process.argv.slice(2);
const server = https.createServer({ cert: fs.readFileSync(cert), key: fs.readFileSync(key) });
const input = readline.createInterface({ input: process.stdin });
input.on('close', () => process.exit());
input.once('line', (redirect) => {
  const provider = new Provider(`https://127.0.0.1:${server.address().port}`, {
    clients: [{ client_id: 'gateway', redirect_uris: [redirect], token_endpoint_auth_method: 'none', response_types: ['code'], grant_types: ['authorization_code'] }],
    cookies: { keys: ['test'] },
    conformIdTokenClaims: false,
    claims: { openid: ['sub', 'realm'], profile: [] },
    pkce: { required: () => true },
    findAccount: (ctx, id) => ({ accountId: id, claims: async () => ({ sub: id, realm: { roles: ['staff', id] } }) }),
  });
  server.on('request', provider.callback());
  console.log('ready');
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
