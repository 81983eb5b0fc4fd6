// A device of an IoT Hub as Microsoft's SDK makes it: it reports, answers a method, hears a message, and reports and is told its twin.
// Arguments: HOST:PORT KEY. Each thing that happens is a line of JSON.
import device from 'azure-iot-device';
import mqtt from 'azure-iot-device-mqtt';

const [, , gateway, key] = process.argv;
const say = (what) => console.log(JSON.stringify(what));
const client = device.Client.fromConnectionString(
  `HostName=localhost;DeviceId=gw1;SharedAccessKey=${key};GatewayHostName=${gateway}`, mqtt.Mqtt);
client.on('error', (e) => { say({ error: String(e) }); process.exit(1); });

await client.open();
client.on('message', (m) => {
  say({ message: m.getData().toString(), topic: m.properties.getValue('topic'), id: m.messageId });
  client.complete(m);
});
client.onDeviceMethod('setpoint', (request, response) => {
  say({ method: request.methodName, payload: request.payload });
  response.send(200, { was: 19 }, () => {});
});
const twin = await client.getTwin();
say({ desired: twin.properties.desired['th-1'] });
twin.on('properties.desired', (d) => say({ patch: d['th-1'] ?? null }));
await new Promise((ok, no) => twin.properties.reported.update({ firmware: '1.2' }, (e) => (e ? no(e) : ok())));

const message = new device.Message('{"v":21.5}');
message.contentType = 'application/json';
message.contentEncoding = 'utf-8';
message.messageId = 'm 1';
message.properties.add('topic', 'dt/gw1/th 1');
message.properties.add('unit', '°C');
await client.sendEvent(message);
say({ sent: true });

process.stdin.resume().once('end', async () => { await client.close(); process.exit(0); });
