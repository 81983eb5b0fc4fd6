// A device of the Device Provisioning Service as Microsoft's SDK makes it, by a symmetric key. Arguments: HOST:PORT SCOPE ID KEY.
import mqtt from 'azure-iot-provisioning-device-mqtt';
import symmetric from 'azure-iot-security-symmetric-key';
import provisioning from 'azure-iot-provisioning-device';

const [, , host, scope, id, key] = process.argv;
const client = provisioning.ProvisioningDeviceClient.create(host, scope, new mqtt.Mqtt(), new symmetric.SymmetricKeySecurityClient(id, key));
client.register((e, result) => console.log(JSON.stringify(e ? { error: String(e) } : { hub: result.assignedHub, device: result.deviceId })));
process.stdin.resume().once('end', () => process.exit(0));
