// A device on npm's coap: node client.mjs PORT. It ends with status 0 where every answer is as it should be.
import assert from 'node:assert/strict'
import coap from 'coap'

const port = Number(process.argv[2])
const query = 'device=npm-1'

function ask(method, pathname, { payload, options = {}, observe = false } = {}) {
  return new Promise((resolve, reject) => {
    const req = coap.request({ hostname: '127.0.0.1', port, method, pathname, query, observe })
    for (const [name, value] of Object.entries(options)) req.setOption(name, value)
    req.on('error', reject)
    req.on('response', resolve)
    req.end(payload)
  })
}

const large = Buffer.alloc(64 * 1024, '0123456789abcdef')

let res = await ask('PUT', '/sensors/temp', { payload: '{"t":21}', options: { 'Content-Format': 'application/json' } })
assert.equal(res.code, '2.04')
res = await ask('GET', '/sensors/temp')
assert.equal(res.code, '2.05')
assert.equal(res.headers['Content-Format'], 'application/json')
assert.equal(res.payload.toString(), '{"t":21}')
res = await ask('POST', '/sensors/temp', { payload: '22' })
assert.equal(res.code, '2.04')
res = await ask('DELETE', '/sensors/temp')
assert.equal(res.code, '2.02')
res = await ask('GET', '/.well-known/core')
assert.match(res.payload.toString(), /<\/.well-known\/core>;ct=40/)

res = await ask('PUT', '/large', { payload: large, options: { Block1: Buffer.of(6) } })
assert.equal(res.code, '2.04')
res = await ask('GET', '/large', { options: { Block2: Buffer.of(5) } })
assert.equal(res.code, '2.05')
assert.ok(res.payload.equals(large), `${res.payload.length} octets are read`)

await ask('PUT', '/observed', { payload: 'one' })
const stream = await ask('GET', '/observed', { observe: true })
const seen = []
await new Promise((resolve, reject) => {
  stream.on('error', reject)
  stream.on('data', chunk => {
    seen.push(chunk.toString())
    if (seen.length === 1) ask('PUT', '/observed', { payload: 'two' }).catch(reject)
    if (seen.length === 2) resolve()
  })
})
stream.close()
assert.deepEqual(seen, ['one', 'two'])
process.exit(0)
