// The other end of payloads that are sealed from end to end: somebody who has libraries for JOSE and COSE, and has read how the key of a
// message is derived. Reads JSON objects, one a line, and answers each with one.
import { createHmac, createPrivateKey, createPublicKey, randomBytes } from 'node:crypto'
import { createInterface } from 'node:readline'
import * as jose from 'jose'
import { Encrypt0, Sign1 } from '@auth0/cose'

let ask, message, payload, claims

const contentKey = (salt) =>
  createHmac('sha256', Buffer.from(ask.secret, 'hex')).update('drawbridge envelope v1\0A256GCM\0').update(salt).update(Buffer.of(1)).digest()

// Labels of RFC 9052, RFC 9053 and RFC 9597, and of the claims of RFC 8392.
const label = { alg: 1, cty: 3, kid: 4, iv: 5, claims: 15, salt: -20 }
const claimLabel = { iss: 1, sub: 2, aud: 3, exp: 4, iat: 6, jti: 7 }
const cwt = () => new Map(Object.entries(claims).map(([k, v]) => [claimLabel[k], k === 'jti' ? Buffer.from(v) : v]))
const fromCWT = (c) => {
  const get = (l) => (c instanceof Map ? c.get(l) : c[l])
  return Object.fromEntries(Object.entries(claimLabel).map(([k, l]) => [k, get(l)]).filter(([, v]) => v !== undefined)
    .map(([k, v]) => [k, k === 'jti' ? Buffer.from(v).toString() : v]))
}
const head = (alg) => new Map([[label.alg, alg], [label.cty, 'application/json'], [label.claims, cwt()]])

const acts = {
  async 'open jwe'() {
    const { salt } = jose.decodeProtectedHeader(message.toString())
    const r = await jose.compactDecrypt(message.toString(), contentKey(Buffer.from(salt, 'base64url')))
    return { payload: Buffer.from(r.plaintext).toString(), claims: r.protectedHeader }
  },
  async 'open jws'() {
    const r = await jose.compactVerify(message.toString(), createPublicKey(ask.pem))
    return { payload: Buffer.from(r.payload).toString(), claims: r.protectedHeader }
  },
  async 'open cose-encrypt0'() {
    const m = Encrypt0.decode(message)
    const plain = await m.decrypt(contentKey(m.unprotectedHeaders.get(label.salt)))
    return { payload: Buffer.from(plain).toString(), claims: { cty: m.protectedHeaders.get(label.cty), ...fromCWT(m.protectedHeaders.get(label.claims)) } }
  },
  async 'open cose-sign1'() {
    const m = Sign1.decode(message)
    await m.verify(createPublicKey(ask.pem))
    return { payload: Buffer.from(m.payload).toString(), claims: { cty: m.protectedHeaders.get(label.cty), ...fromCWT(m.protectedHeaders.get(label.claims)) } }
  },
  async 'seal jwe'() {
    const salt = randomBytes(16)
    return { message: await new jose.CompactEncrypt(payload)
      .setProtectedHeader({ alg: 'dir', enc: 'A256GCM', salt: salt.toString('base64url'), cty: 'application/json', ...claims }).encrypt(contentKey(salt)) }
  },
  async 'seal jws'() {
    return { message: await new jose.CompactSign(payload).setProtectedHeader({ alg: 'ES256', cty: 'application/json', ...claims }).sign(createPrivateKey(ask.pem)) }
  },
  async 'seal cose-encrypt0'() {
    const salt = randomBytes(16)
    const m = await Encrypt0.encrypt(head(3), new Map([[label.salt, salt]]), payload, contentKey(salt))
    return { binary: Buffer.from(m.encode()).toString('base64') }
  },
  async 'seal cose-sign1'() {
    const m = await Sign1.sign(head(-7), new Map(), payload, createPrivateKey(ask.pem))
    return { binary: Buffer.from(m.encode()).toString('base64') }
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  ask = JSON.parse(line)
  message = Buffer.from(ask.message ?? '', 'base64')
  payload = Buffer.from(ask.payload ?? '')
  claims = ask.claims ?? {}
  const out = await acts[ask.do]()
  console.log(JSON.stringify({ ...out, message: out.binary ?? (out.message && Buffer.from(out.message).toString('base64')) }))
}
