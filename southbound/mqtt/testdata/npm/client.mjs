// A client of npm's mqtt takes every option that it has to the broker: node client.mjs URL CA USER PASSWORD VERSION
import assert from "node:assert/strict"
import fs from "node:fs"
import mqtt from "mqtt"

const [url, ca, username, password, version] = process.argv.slice(2)
const five = version === "5"
const clients = []

function within(what, promise) {
  return Promise.race([promise, new Promise((_, no) => setTimeout(() => no(new Error("waited in vain for " + what)), 30000).unref())])
}

// open gives a client with what it hears, and the CONNACK.
async function open(id, options = {}) {
  const c = mqtt.connect(url, {
    ca: fs.readFileSync(ca), username, password, protocolVersion: +version, clientId: id, reconnectPeriod: 0, clean: true, ...options,
  })
  clients.push(c)
  c.heard = []
  c.waiting = []
  c.on("message", (topic, payload, packet) => {
    c.heard.push({ topic, payload: payload.toString(), packet })
    c.waiting.splice(0).forEach(f => f())
  })
  c.hears = n => within(`${n} messages of ${id}`, (async () => {
    while (c.heard.length < n) await new Promise(f => c.waiting.push(f))
    return c.heard.splice(0)
  })())
  c.connack = await within("CONNACK of " + id, new Promise((yes, no) => { c.on("connect", yes); c.on("error", no) }))
  return c
}

const v5 = properties => (five ? { properties } : {})

// A session that stays, small windows, and everything that a message can carry.
const stays = { clean: false, ...v5({ sessionExpiryInterval: 600, receiveMaximum: 2, topicAliasMaximum: 5, requestProblemInformation: true }) }
let sub = await open("sub", stays)
assert.equal(sub.connack.sessionPresent, false)
if (five) {
  const p = sub.connack.properties
  assert.ok(p.receiveMaximum > 0 && p.maximumPacketSize > 0 && p.topicAliasMaximum > 0)
  assert.equal(p.sessionExpiryInterval ?? 600, 600)
}
const granted = await sub.subscribeAsync("o/#", { qos: 2, nl: true, rap: true, rh: 1, ...v5({ subscriptionIdentifier: 7, userProperties: { why: "test" } }) })
assert.equal(granted[0].qos, 2)
const pub = await open("pub", { autoAssignTopicAlias: five, ...v5({ topicAliasMaximum: 5 }) })
await sub.publishAsync("o/own", "own", { qos: 1 })
const all = {
  payloadFormatIndicator: true, messageExpiryInterval: 600, contentType: "text/plain", responseTopic: "answers", correlationData: Buffer.from("c1"),
  userProperties: { a: ["1", "2"], b: "3" },
}
for (const qos of [0, 1, 2]) await pub.publishAsync("o/all", "payload " + qos, { qos, retain: qos === 2, ...v5({ ...all }) })
const own = five ? 0 : 1 // 3.1.1 knows no "no local"
const heard = (await sub.hears(3 + own)).filter(m => m.topic !== "o/own")
assert.deepEqual(heard.map(m => m.payload), ["payload 0", "payload 1", "payload 2"])
heard.forEach((m, qos) => {
  assert.equal(m.packet.qos, qos)
  assert.equal(m.packet.retain, five && qos === 2) // retain as published
  if (!five) return
  const p = m.packet.properties
  assert.equal(p.subscriptionIdentifier, 7)
  assert.equal(p.contentType, "text/plain")
  assert.equal(p.responseTopic, "answers")
  assert.equal(p.correlationData.toString(), "c1")
  assert.equal(p.payloadFormatIndicator, true)
  assert.deepEqual({ ...p.userProperties }, { a: ["1", "2"], b: "3" })
  assert.ok(p.messageExpiryInterval <= 600)
})

// More than fit into the window.
for (let i = 0; i < 10; i++) await pub.publishAsync("o/many", String(i), { qos: 1 })
assert.deepEqual((await sub.hears(10)).map(m => m.payload), [..."0123456789"])

// Away, and back.
await sub.endAsync()
await pub.publishAsync("o/later", "kept", { qos: 1, ...v5({ messageExpiryInterval: 600 }) })
sub = await open("sub", stays)
assert.equal(sub.connack.sessionPresent, true)
assert.deepEqual((await sub.hears(1)).map(m => m.payload), ["kept"])

// Retain handling.
const late = await open("late")
await late.subscribeAsync("o/all", { qos: 1, rh: 0 })
const [kept] = await late.hears(1)
assert.ok(kept.packet.retain && kept.payload === "payload 2")
if (five) {
  await late.subscribeAsync("o/all", { qos: 1, rh: 2 })
  await late.subscribeAsync("o/all", { qos: 1, rh: 1 })
  await pub.publishAsync("o/all", "fresh", { qos: 1 })
  assert.deepEqual((await late.hears(1)).map(m => m.payload), ["fresh"])
}

// A shared subscription.
const one = await open("one"), two = await open("two")
for (const c of [one, two]) await c.subscribeAsync("$share/g/shared/#", { qos: 1 })
for (let i = 0; i < 4; i++) await pub.publishAsync("shared/x", String(i), { qos: 1 })
const parts = [...await one.hears(2), ...await two.hears(2)].map(m => m.payload).sort()
assert.deepEqual(parts, ["0", "1", "2", "3"])

// A will, with a delay where the version has one.
await late.subscribeAsync("wills/#", { qos: 1 })
const mortal = await open("mortal", {
  ...v5({ sessionExpiryInterval: 600 }),
  will: { topic: "wills/mortal", payload: "gone", qos: 1, retain: false, ...v5({ willDelayInterval: 1, contentType: "text/plain", userProperties: { w: "1" } }) },
})
late.heard.length = 0
mortal.stream.destroy()
const [will] = await late.hears(1)
assert.equal(will.payload, "gone")
if (five) assert.equal(will.packet.properties.contentType, "text/plain")

// What is not allowed, and what is not there.
if (five) {
  const no = await late.subscribeAsync("forbidden/x", { qos: 1 }).catch(e => e)
  assert.ok(no instanceof Error ? no.code === 0x87 || /Not authorized/i.test(no.message) : no[0].qos === 0x87, String(no))
  const refused = await late.publishAsync("forbidden/x", "", { qos: 1 }).catch(e => e)
  assert.equal(refused.code, 0x87)
}
await late.unsubscribeAsync("wills/#")

// Enhanced authentication, with the token in CONNECT.
if (five) {
  const c = await open("token", { password: undefined, properties: { authenticationMethod: "JWT", authenticationData: Buffer.from(password) } })
  assert.equal(c.connack.properties.authenticationMethod, "JWT")
}

await Promise.all(clients.map(c => c.endAsync(true)))
console.log("well")
