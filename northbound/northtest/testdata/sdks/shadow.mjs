// A thing of AWS IoT as Amazon's SDK makes it: a shadow, reported and desired, and a publication.
// Arguments: HOST PORT CERT KEY CA. Each thing that happens is a line of JSON.
import sdk from 'aws-iot-device-sdk';

const [, , host, port, certPath, keyPath, caPath] = process.argv;
const say = (what) => console.log(JSON.stringify(what));
const shadows = new sdk.thingShadow({ host, port: Number(port), certPath, keyPath, caPath, clientId: 'sdk' });
shadows.on('error', (e) => { say({ error: String(e) }); process.exit(1); });
shadows.on('status', (thing, status, token, state) => say({ status, version: state.version ?? 0, code: state.code ?? 0 }));
shadows.on('delta', (thing, state) => say({ delta: state.state, version: state.version }));
shadows.on('connect', () => {
  shadows.register('th-1', {}, () => {
    shadows.update('th-1', { state: { reported: { temp: 21 } } });
    shadows.publish('dt/sdk', '{"v":1}', { qos: 1 }, () => say({ sent: true }));
  });
});
process.stdin.resume().once('end', () => { shadows.end(true); process.exit(0); });
